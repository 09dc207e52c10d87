-- What the runtime has seen of the servers of MCP connections: it writes as the tenant, the operator reads and sets
-- conditions. And the clients that users have opened, so that any replica can go on with them.

create table mcp_observations (
    org_id        uuid not null references organizations (id) on delete cascade,
    connection_id uuid not null,
    observed_at   timestamptz not null default now(),
    -- Of the connection's row that was looked with; tools are pinned for one generation.
    generation    bigint not null,
    state         text not null,
    message       text,
    tools         jsonb not null default '[]',
    pinned        jsonb,
    quarantined   boolean not null default false,
    breaker       text not null default 'closed',
    auth_state    text,
    protocol      text,
    primary key (org_id, connection_id),
    constraint mcp_observations_connection foreign key (org_id, connection_id)
        references mcp_connections (org_id, id) on delete cascade,
    constraint mcp_observations_generation_positive check (generation >= 0),
    constraint mcp_observations_state_length check (length(state) between 1 and 64),
    constraint mcp_observations_message_length check (length(message) between 1 and 1024),
    constraint mcp_observations_tools_array check (jsonb_typeof(tools) = 'array'),
    constraint mcp_observations_pinned_array check (jsonb_typeof(pinned) = 'array'),
    constraint mcp_observations_breaker_known check (breaker in ('closed', 'open', 'half-open')),
    constraint mcp_observations_auth_state_known
        check (auth_state in ('NeedsConsent', 'Authorized', 'Expiring', 'Revoked')),
    constraint mcp_observations_protocol_length check (length(protocol) between 1 and 64)
);
-- The operator asks for what is new.
create index mcp_observations_news on mcp_observations (observed_at);

alter table mcp_observations enable row level security;
alter table mcp_observations force row level security;
grant select, insert, update, delete on mcp_observations to agentapi_tenant;
grant select on mcp_observations to agentapi_operator, agentapi_tenant_ro;
create policy mcp_observations_operator on mcp_observations for select to agentapi_operator using (true);
create policy mcp_observations_read on mcp_observations for select to agentapi_tenant, agentapi_tenant_ro
    using (org_id = (select app.current_org()));
create policy mcp_observations_add on mcp_observations for insert to agentapi_tenant
    with check (org_id = (select app.current_org()) and (select app.is_admin()));
create policy mcp_observations_change on mcp_observations for update to agentapi_tenant
    using (org_id = (select app.current_org()) and (select app.is_admin()))
    with check (org_id = (select app.current_org()) and (select app.is_admin()));
create policy mcp_observations_remove on mcp_observations for delete to agentapi_tenant
    using (org_id = (select app.current_org()) and (select app.is_admin()));

-- A client is a user's session with a server. Its name at the server opens it for whoever has the credentials too, so
-- it is nobody's but the user's, and nothing for read-only logins.
create table mcp_clients (
    org_id        uuid not null references organizations (id) on delete cascade,
    id            uuid not null,
    connection_id uuid not null,
    user_id       uuid not null,
    -- Of the connection's row that it was opened with: with another one it is of no use.
    generation    bigint not null,
    session       jsonb not null,
    created_at    timestamptz not null default now(),
    used_at       timestamptz not null default now(),
    primary key (org_id, id),
    constraint mcp_clients_connection foreign key (org_id, connection_id)
        references mcp_connections (org_id, id) on delete cascade,
    constraint mcp_clients_user foreign key (org_id, user_id) references users (org_id, id) on delete cascade,
    constraint mcp_clients_generation_positive check (generation >= 0),
    constraint mcp_clients_session_object check (jsonb_typeof(session) = 'object'),
    constraint mcp_clients_session_length check (octet_length(session::text) <= 65536)
);
create index mcp_clients_of_user on mcp_clients (org_id, user_id, id);
create index mcp_clients_of_connection on mcp_clients (org_id, connection_id);

alter table mcp_clients enable row level security;
alter table mcp_clients force row level security;
grant select, insert, update, delete on mcp_clients to agentapi_tenant;
create policy mcp_clients_read on mcp_clients for select to agentapi_tenant
    using (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())));
create policy mcp_clients_add on mcp_clients for insert to agentapi_tenant
    with check (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())));
create policy mcp_clients_change on mcp_clients for update to agentapi_tenant
    using (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())))
    with check (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())));
create policy mcp_clients_remove on mcp_clients for delete to agentapi_tenant
    using (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())));

-- Offboarding counts what goes with an organization.
grant select (org_id) on mcp_clients to agentapi_operator;
create policy mcp_clients_count on mcp_clients for select to agentapi_operator using (true);
