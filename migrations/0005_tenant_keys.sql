-- The data key of each organization, wrapped with the master key that only Kubernetes holds. It is here and not only
-- in a Secret so that a deleted Secret loses no ciphertext, and it goes with the organization's row: rows that are
-- deleted take the only key to their ciphertexts along.
create table tenant_keys (
    org_id        uuid primary key references organizations (id) on delete cascade,
    version       integer not null default 1,
    wrapped       bytea not null,
    master_key_id text not null,
    created_at    timestamptz not null default now(),
    constraint tenant_keys_version_positive check (version > 0),
    -- format, nonce, 32 bytes of key, tag
    constraint tenant_keys_wrapped_length check (octet_length(wrapped) = 61),
    constraint tenant_keys_master_key_id_length check (length(master_key_id) between 1 and 128)
);

-- Nobody but the operator: tenants and the runtime get the key as a Secret of the tenant's namespace.
alter table tenant_keys enable row level security;
alter table tenant_keys force row level security;
grant select, insert, update, delete on tenant_keys to agentapi_operator;
create policy tenant_keys_operator on tenant_keys to agentapi_operator using (true) with check (true);
