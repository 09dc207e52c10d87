-- What the runtime needs to seal, refresh and revoke OAuth tokens.

-- The runtime unwraps an organization's data key with the master key that is mounted into it, and reads the wrapped one
-- as that organization's role. Wrapped, it is worth nothing to whoever has only the role.
grant select (org_id, version, wrapped, master_key_id, state) on tenant_keys to agentapi_tenant;
create policy tenant_keys_own on tenant_keys for select to agentapi_tenant
    using (org_id = (select app.current_org()));

-- A grant says for which provider and which MCP server it was given: tokens go nowhere else, whatever the connection
-- says later. A revoked grant keeps its row and no token.
alter table mcp_oauth_tokens
    alter column access_ciphertext drop not null,
    add column issuer      text,
    add column resource    text,
    -- What the provider calls that server, where it has a name for it (RFC 8707).
    add column audience    text,
    -- Counts exchanges: whoever refreshes says which one it has seen, so that two of them make one refresh.
    add column refreshes   bigint not null default 0,
    -- Who is at the provider with the refresh token, and until when it may be.
    add column lease       uuid,
    add column lease_until timestamptz,
    -- After failures of the provider: how many in a row, and when the next attempt may be.
    add column failures    integer not null default 0,
    add column retry_at    timestamptz,
    add column revoked_at  timestamptz,
    add constraint mcp_oauth_tokens_issuer_length check (length(issuer) between 1 and 2048),
    add constraint mcp_oauth_tokens_resource_length check (length(resource) between 1 and 2048),
    add constraint mcp_oauth_tokens_audience_length check (length(audience) between 1 and 2048),
    add constraint mcp_oauth_tokens_lease_whole check ((lease is null) = (lease_until is null)),
    add constraint mcp_oauth_tokens_failures_positive check (failures >= 0),
    add constraint mcp_oauth_tokens_revoked_has_no_token
        check ((revoked_at is null) = (access_ciphertext is not null)
               and (revoked_at is null or refresh_ciphertext is null));

-- What is sealed in a state: the PKCE verifier, and what the provider's answer is compared with.
alter table oauth_states
    drop constraint oauth_states_pkce_length,
    add constraint oauth_states_pkce_length check (octet_length(pkce_ciphertext) between 28 and 32768);

-- Clients that were registered at a provider for a connection (RFC 7591): id and secret, sealed.
create table oauth_clients (
    org_id            uuid not null references organizations (id) on delete cascade,
    connection_id     uuid not null,
    issuer            text not null,
    redirect_uri      text not null,
    client_ciphertext bytea not null,
    key_id            text not null,
    key_version       integer not null,
    -- When the secret ends, if it does.
    expires_at        timestamptz,
    created_at        timestamptz not null default now(),
    updated_at        timestamptz not null default now(),
    primary key (org_id, connection_id),
    constraint oauth_clients_connection foreign key (org_id, connection_id)
        references mcp_connections (org_id, id) on delete cascade,
    constraint oauth_clients_issuer_length check (length(issuer) between 1 and 2048),
    constraint oauth_clients_redirect_uri_length check (length(redirect_uri) between 1 and 2048),
    constraint oauth_clients_ciphertext_length check (octet_length(client_ciphertext) between 28 and 16384),
    constraint oauth_clients_key_id_length check (length(key_id) between 1 and 128),
    constraint oauth_clients_key_version_positive check (key_version > 0)
);
create trigger oauth_clients_touch before update on oauth_clients
    for each row execute function app.touch_updated_at();

-- The platform registers and uses clients for a tenant, never a user themselves.
alter table oauth_clients enable row level security;
alter table oauth_clients force row level security;
grant select, insert, update, delete on oauth_clients to agentapi_tenant;
create policy oauth_clients_read on oauth_clients for select to agentapi_tenant
    using (org_id = (select app.current_org()) and (select app.is_admin()));
create policy oauth_clients_add on oauth_clients for insert to agentapi_tenant
    with check (org_id = (select app.current_org()) and (select app.is_admin()));
create policy oauth_clients_change on oauth_clients for update to agentapi_tenant
    using (org_id = (select app.current_org()) and (select app.is_admin()))
    with check (org_id = (select app.current_org()) and (select app.is_admin()));
create policy oauth_clients_remove on oauth_clients for delete to agentapi_tenant
    using (org_id = (select app.current_org()) and (select app.is_admin()));
-- Which versions of data keys are still in use. Three columns, and none of them is a secret.
grant select (org_id, key_id, key_version) on oauth_clients to agentapi_operator;
create policy oauth_clients_usage on oauth_clients for select to agentapi_operator using (true);
