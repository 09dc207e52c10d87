-- MCP connections, the OAuth tokens and states that belong to them, prompt policies.

-- origin 'crd': id is metadata.uid of the McpConnection and only the operator writes. origin 'api': an admin of the
-- organization made it through /v1/mcp/configurations.
create table mcp_connections (
    org_id        uuid not null references organizations (id) on delete cascade,
    id            uuid not null,
    name          text not null,
    k8s_namespace text,
    workspace_id  uuid,
    origin        text not null,
    transport     text not null,
    spec          jsonb not null default '{}',
    generation    bigint not null default 0,
    created_by    uuid,
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now(),
    primary key (org_id, id),
    -- k8s_namespace is NULL for origin 'api', and two NULLs must clash.
    constraint mcp_connections_name_once unique nulls not distinct (org_id, k8s_namespace, name),
    constraint mcp_connections_workspace foreign key (org_id, workspace_id)
        references workspaces (org_id, id) on delete cascade,
    constraint mcp_connections_created_by foreign key (org_id, created_by) references users (org_id, id),
    constraint mcp_connections_name_length check (length(name) between 1 and 253),
    constraint mcp_connections_k8s_namespace_length check (length(k8s_namespace) between 1 and 63),
    constraint mcp_connections_origin_known check (origin in ('crd', 'api')),
    constraint mcp_connections_origin_tells_namespace check ((origin = 'crd') = (k8s_namespace is not null)),
    constraint mcp_connections_transport_known check (transport in ('streamableHttp', 'sse', 'stdio')),
    constraint mcp_connections_spec_object check (jsonb_typeof(spec) = 'object'),
    constraint mcp_connections_generation_positive check (generation >= 0)
);
create index mcp_connections_by_workspace on mcp_connections (org_id, workspace_id);

-- Ciphertexts only (AES-256-GCM under the organization's data key). user_id NULL: one token for the whole
-- organization.
create table mcp_oauth_tokens (
    org_id             uuid not null references organizations (id) on delete cascade,
    id                 uuid not null,
    connection_id      uuid not null,
    user_id            uuid,
    access_ciphertext  bytea not null,
    refresh_ciphertext bytea,
    key_id             text not null,
    key_version        integer not null,
    scopes             text[] not null default '{}',
    expires_at         timestamptz,
    created_at         timestamptz not null default now(),
    updated_at         timestamptz not null default now(),
    primary key (org_id, id),
    constraint mcp_oauth_tokens_one_each unique nulls not distinct (org_id, connection_id, user_id),
    constraint mcp_oauth_tokens_connection foreign key (org_id, connection_id)
        references mcp_connections (org_id, id) on delete cascade,
    constraint mcp_oauth_tokens_user foreign key (org_id, user_id)
        references users (org_id, id) on delete cascade,
    -- 12 bytes of nonce, 16 of tag: anything shorter is not a ciphertext.
    constraint mcp_oauth_tokens_access_length check (octet_length(access_ciphertext) between 28 and 65536),
    constraint mcp_oauth_tokens_refresh_length check (octet_length(refresh_ciphertext) between 28 and 65536),
    constraint mcp_oauth_tokens_key_id_length check (length(key_id) between 1 and 128),
    constraint mcp_oauth_tokens_key_version_positive check (key_version > 0),
    constraint mcp_oauth_tokens_scopes_count check (cardinality(scopes) <= 100)
);

-- Single use, ten minutes, found by the hash of the state that the browser carries.
create table oauth_states (
    org_id          uuid not null references organizations (id) on delete cascade,
    state_hash      bytea not null,
    connection_id   uuid not null,
    user_id         uuid not null,
    pkce_ciphertext bytea not null,
    redirect_uri    text not null,
    created_at      timestamptz not null default now(),
    expires_at      timestamptz not null,
    primary key (org_id, state_hash),
    constraint oauth_states_connection foreign key (org_id, connection_id)
        references mcp_connections (org_id, id) on delete cascade,
    constraint oauth_states_user foreign key (org_id, user_id) references users (org_id, id) on delete cascade,
    constraint oauth_states_hash_length check (octet_length(state_hash) = 32),
    constraint oauth_states_pkce_length check (octet_length(pkce_ciphertext) between 28 and 4096),
    constraint oauth_states_redirect_uri_length check (length(redirect_uri) between 1 and 2048),
    constraint oauth_states_short_lived check (expires_at <= created_at + interval '10 minutes')
);
create index oauth_states_expired on oauth_states (org_id, expires_at);

-- id is metadata.uid of the PromptPolicy. A Global policy belongs to no organization and is read by all.
create table prompt_policies (
    id            uuid primary key,
    org_id        uuid references organizations (id) on delete cascade,
    workspace_id  uuid,
    scope         text not null,
    name          text not null,
    k8s_namespace text not null,
    priority      integer not null default 0,
    locked        boolean not null default false,
    template      text not null,
    spec          jsonb not null default '{}',
    generation    bigint not null default 0,
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now(),
    constraint prompt_policies_name_once unique (k8s_namespace, name),
    constraint prompt_policies_workspace foreign key (org_id, workspace_id)
        references workspaces (org_id, id) on delete cascade,
    constraint prompt_policies_scope_known check (scope in ('Global', 'Organization', 'Workspace')),
    constraint prompt_policies_scope_tells_org check ((scope = 'Global') = (org_id is null)),
    constraint prompt_policies_scope_tells_workspace check ((scope = 'Workspace') = (workspace_id is not null)),
    constraint prompt_policies_name_length check (length(name) between 1 and 253),
    constraint prompt_policies_k8s_namespace_length check (length(k8s_namespace) between 1 and 63),
    constraint prompt_policies_template_length check (octet_length(template) <= 1048576),
    constraint prompt_policies_spec_object check (jsonb_typeof(spec) = 'object'),
    constraint prompt_policies_generation_positive check (generation >= 0)
);
create index prompt_policies_by_org on prompt_policies (org_id, workspace_id, priority desc);

create trigger mcp_connections_touch before update on mcp_connections
    for each row execute function app.touch_updated_at();
create trigger mcp_oauth_tokens_touch before update on mcp_oauth_tokens
    for each row execute function app.touch_updated_at();
create trigger prompt_policies_touch before update on prompt_policies
    for each row execute function app.touch_updated_at();

-- mcp_connections: everybody of the organization reads; admins write what came through the API, never what a
-- resource says.
alter table mcp_connections enable row level security;
alter table mcp_connections force row level security;
grant select, insert, update, delete on mcp_connections to agentapi_operator, agentapi_tenant;
grant select on mcp_connections to agentapi_tenant_ro;
create policy mcp_connections_operator on mcp_connections to agentapi_operator
    using (origin = 'crd') with check (origin = 'crd');
create policy mcp_connections_read on mcp_connections for select to agentapi_tenant, agentapi_tenant_ro
    using (org_id = (select app.current_org()));
create policy mcp_connections_add on mcp_connections for insert to agentapi_tenant
    with check (org_id = (select app.current_org()) and (select app.is_admin()) and origin = 'api');
create policy mcp_connections_change on mcp_connections for update to agentapi_tenant
    using (org_id = (select app.current_org()) and (select app.is_admin()) and origin = 'api')
    with check (org_id = (select app.current_org()) and (select app.is_admin()) and origin = 'api');
create policy mcp_connections_remove on mcp_connections for delete to agentapi_tenant
    using (org_id = (select app.current_org()) and (select app.is_admin()) and origin = 'api');

-- mcp_oauth_tokens: a user's own; the shared one (user_id NULL) is used by all and changed by admins. No grant for
-- read-only logins: a ciphertext is nothing for a BI tool.
alter table mcp_oauth_tokens enable row level security;
alter table mcp_oauth_tokens force row level security;
grant select, insert, update, delete on mcp_oauth_tokens to agentapi_tenant;
create policy mcp_oauth_tokens_read on mcp_oauth_tokens for select to agentapi_tenant
    using (org_id = (select app.current_org())
           and (user_id is null or user_id = (select app.user_id()) or (select app.is_admin())));
create policy mcp_oauth_tokens_add on mcp_oauth_tokens for insert to agentapi_tenant
    with check (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())));
create policy mcp_oauth_tokens_change on mcp_oauth_tokens for update to agentapi_tenant
    using (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())))
    with check (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())));
create policy mcp_oauth_tokens_remove on mcp_oauth_tokens for delete to agentapi_tenant
    using (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())));

-- oauth_states: written once, read and deleted once, never changed.
alter table oauth_states enable row level security;
alter table oauth_states force row level security;
grant select, insert, delete on oauth_states to agentapi_tenant;
create policy oauth_states_read on oauth_states for select to agentapi_tenant
    using (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())));
create policy oauth_states_add on oauth_states for insert to agentapi_tenant
    with check (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())));
create policy oauth_states_remove on oauth_states for delete to agentapi_tenant
    using (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())));
create policy oauth_states_fixed on oauth_states as restrictive for update using (false);

-- prompt_policies: tenants read their own and the global ones and write none; the operator decides from the
-- namespace of the resource who may say Global.
alter table prompt_policies enable row level security;
alter table prompt_policies force row level security;
grant select, insert, update, delete on prompt_policies to agentapi_operator;
grant select on prompt_policies to agentapi_tenant, agentapi_tenant_ro;
create policy prompt_policies_operator on prompt_policies to agentapi_operator using (true) with check (true);
create policy prompt_policies_read on prompt_policies for select to agentapi_tenant, agentapi_tenant_ro
    using (org_id = (select app.current_org()) or (org_id is null and (select app.current_org()) is not null));
