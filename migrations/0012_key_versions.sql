-- A data key has versions: one encrypts, older ones open what they once encrypted and go when nothing needs them. The
-- id of a data key is its organization's; a ciphertext names id and version.
alter table tenant_keys drop constraint tenant_keys_pkey;
alter table tenant_keys add primary key (org_id, version);
alter table tenant_keys
    add column state text not null default 'current',
    -- Value of the Organization's annotation that this version was made for.
    add column rotation text not null default '',
    add column retired_at timestamptz,
    add constraint tenant_keys_state_known check (state in ('current', 'previous')),
    add constraint tenant_keys_retired_at_tells_state check ((retired_at is not null) = (state = 'previous')),
    add constraint tenant_keys_rotation_length check (length(rotation) <= 256);
create unique index tenant_keys_one_current on tenant_keys (org_id) where state = 'current';
-- What a rotation of the master key still has to wrap again.
create index tenant_keys_by_master_key on tenant_keys (master_key_id);

-- Which versions are still in use. Three columns, and none of them is a token.
grant select (org_id, key_id, key_version) on mcp_oauth_tokens to agentapi_operator;
create policy mcp_oauth_tokens_usage on mcp_oauth_tokens for select to agentapi_operator using (true);
