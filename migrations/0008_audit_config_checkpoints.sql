-- The audit log, second part: the configuration in force in every row, signed checkpoints, and a chain that costs less.

-- ---------------------------------------------------------------------------------------------------------------
-- audit_configs: which generation of which resource is in force, per organization; global prompt policies are in the
-- row of the organization that is none (all zeros). Kept by triggers from the rows alone: the functions that do it run
-- as agentapi_owner, whom FORCE lets see no tenant's row.
create table audit_configs (
    org_id   uuid primary key,
    elements jsonb not null default '{}',
    constraint audit_configs_elements_object check (jsonb_typeof(elements) = 'object')
);
alter table audit_configs enable row level security;
alter table audit_configs force row level security;
grant select on audit_configs to agentapi_tenant, agentapi_tenant_ro;
create policy audit_configs_keep_read on audit_configs for select to agentapi_owner using (true);
create policy audit_configs_keep_add on audit_configs for insert to agentapi_owner with check (true);
create policy audit_configs_keep_change on audit_configs for update to agentapi_owner using (true) with check (true);
create policy audit_configs_read on audit_configs for select to agentapi_tenant
    using (org_id = (select app.current_org()) and (select app.is_admin()));
create policy audit_configs_ro on audit_configs for select to agentapi_tenant_ro
    using (org_id = (select app.current_org()));
create policy audit_configs_no_delete on audit_configs as restrictive for delete using (false);

-- The head carries the digest, so that a row of the log gets it with the head and for nothing, and so that it is the
-- configuration at the row's place in the chain. Room in the page keeps the moves of a head off its index.
alter table audit_heads add column config_digest text;
alter table audit_heads add constraint audit_heads_config_digest_length check (length(config_digest) <= 128);
alter table audit_heads set (fillfactor = 40);

-- Digest of the elements of an organization and of those of everybody: {"PromptPolicy/<id>": <generation>, …} as
-- jsonb prints it.
create function app.audit_config_digest(org uuid) returns text
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    elements jsonb := '{}';
    one jsonb;
begin
    -- Share locks, the global row first, as app.audit_config_element takes them: no change is left out that commits
    -- before this transaction does.
    for one in select c.elements from public.audit_configs c
        where c.org_id in ('00000000-0000-0000-0000-000000000000', org) order by c.org_id for share
    loop
        elements := elements || one;
    end loop;
    return 'sha256:' || encode(sha256(convert_to(elements::text, 'UTF8')), 'hex');
end $$;

-- An element has this generation from now on, or is gone (generation NULL).
create function app.audit_config_element(org uuid, element text, generation bigint) returns void
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    everybody constant uuid := '00000000-0000-0000-0000-000000000000';
    one uuid;
begin
    if org is null then
        org := everybody;
    else
        perform from public.audit_configs c where c.org_id = everybody for share;
    end if;
    insert into public.audit_configs as c (org_id, elements)
    values (org, case when generation is null then '{}' else jsonb_build_object(element, generation) end)
    on conflict (org_id) do update set elements =
        case when generation is null then c.elements - element else c.elements || excluded.elements end;
    if org <> everybody then
        update public.audit_heads h set config_digest = app.audit_config_digest(org) where h.org_id = org;
        return;
    end if;
    -- In one order, so that two of these can't wait for each other.
    for one in select c.org_id from public.audit_configs c where c.elements ? 'Organization' order by c.org_id
    loop
        update public.audit_heads h set config_digest = app.audit_config_digest(one) where h.org_id = one;
    end loop;
end $$;

-- SECURITY DEFINER: nobody may write the configuration that the audit log vouches for. They take nothing but the row
-- that fired them, build no SQL and touch nothing but audit_configs and the digest in audit_heads.
create function app.audit_config_organization() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'DELETE' then
        perform app.audit_config_element(old.id, 'Organization', null);
    else
        perform app.audit_config_element(new.id, 'Organization',
            case when new.deleted_at is null then new.generation end);
    end if;
    return null;
end $$;

create function app.audit_config_workspace() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'DELETE' then
        perform app.audit_config_element(old.org_id, 'Workspace/' || old.id, null);
    else
        perform app.audit_config_element(new.org_id, 'Workspace/' || new.id,
            case when new.deleted_at is null then new.generation end);
    end if;
    return null;
end $$;

-- For mcp_connections and prompt_policies; the argument is the kind.
create function app.audit_config_resource() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'DELETE' or (tg_op = 'UPDATE' and new.org_id is distinct from old.org_id) then
        perform app.audit_config_element(old.org_id, tg_argv[0] || '/' || old.id, null);
    end if;
    if tg_op <> 'DELETE' then
        perform app.audit_config_element(new.org_id, tg_argv[0] || '/' || new.id, new.generation);
    end if;
    return null;
end $$;

create trigger organizations_config_moves after insert or delete on organizations
    for each row execute function app.audit_config_organization();
create trigger organizations_config_changes after update on organizations for each row
    when ((old.generation, old.deleted_at is null) is distinct from (new.generation, new.deleted_at is null))
    execute function app.audit_config_organization();
create trigger workspaces_config_moves after insert or delete on workspaces
    for each row execute function app.audit_config_workspace();
create trigger workspaces_config_changes after update on workspaces for each row
    when ((old.generation, old.deleted_at is null) is distinct from (new.generation, new.deleted_at is null))
    execute function app.audit_config_workspace();
create trigger mcp_connections_config_moves after insert or delete on mcp_connections
    for each row execute function app.audit_config_resource('McpConnection');
create trigger mcp_connections_config_changes after update on mcp_connections for each row
    when (old.generation is distinct from new.generation)
    execute function app.audit_config_resource('McpConnection');
create trigger prompt_policies_config_moves after insert or delete on prompt_policies
    for each row execute function app.audit_config_resource('PromptPolicy');
create trigger prompt_policies_config_changes after update on prompt_policies for each row
    when ((old.generation, old.org_id) is distinct from (new.generation, new.org_id))
    execute function app.audit_config_resource('PromptPolicy');

-- ---------------------------------------------------------------------------------------------------------------
-- The same hash as before, byte for byte, in one expression: a call per field was most of what a row cost.
create or replace function app.audit_hash(r audit_log) returns bytea
    language plpgsql stable parallel safe
as $$
begin
    return sha256(convert_to('17:agentapi.audit.v1,'
        || '36:' || r.org_id || ','
        || length(r.seq::text) || ':' || r.seq || ','
        || octet_length(r.org_slug) || ':' || r.org_slug || ','
        || length((extract(epoch from r.at) * 1000000)::bigint::text) || ':'
        || (extract(epoch from r.at) * 1000000)::bigint || ','
        || octet_length(r.db_role) || ':' || r.db_role || ','
        || octet_length(r.actor) || ':' || r.actor || ','
        || octet_length(r.action) || ':' || r.action || ','
        || octet_length(r.target_kind) || ':' || r.target_kind || ','
        || coalesce(octet_length(r.target_id) || ':' || r.target_id, '-') || ','
        || coalesce(octet_length(r.request_id) || ':' || r.request_id, '-') || ','
        || coalesce(octet_length(r.source_ip) || ':' || r.source_ip, '-') || ','
        || coalesce(octet_length(r.user_agent) || ':' || r.user_agent, '-') || ','
        || octet_length(r.detail::text) || ':' || r.detail::text || ','
        || coalesce(octet_length(r.config_digest) || ':' || r.config_digest, '-') || ','
        || '64:' || encode(r.prev_hash, 'hex') || ',', 'UTF8'));
end $$;
drop function app.audit_field(text);

-- The digest comes from the head; nobody brings their own.
revoke insert (config_digest) on audit_log from agentapi_tenant, agentapi_operator;

-- A head moves one link on, or gets another digest and stays where it is.
drop trigger audit_heads_step on audit_heads;
create trigger audit_heads_step before update on audit_heads for each row
    when (new.org_id <> old.org_id or new.org_slug <> old.org_slug
          or not (new.seq = old.seq + 1 or (new.seq = old.seq and new.hash = old.hash)))
    execute function app.audit_head_step();
create or replace function app.audit_head_step() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    raise insufficient_privilege using message = 'audit_heads moves only with a new row of audit_log';
end $$;

-- ---------------------------------------------------------------------------------------------------------------
-- audit_checkpoints: the operator signs the end of each chain again and again, with a key that Postgres never sees.
-- Whoever rewrites a chain, or cuts its end off, would have to forge these too.
create table audit_checkpoints (
    org_id     uuid not null,
    seq        bigint not null,
    hash       bytea not null,
    at         timestamptz not null,
    kid        text not null,
    public_key bytea not null,
    statement  text not null,
    primary key (org_id, seq),
    constraint audit_checkpoints_seq_positive check (seq > 0),
    constraint audit_checkpoints_hash_length check (octet_length(hash) = 32),
    constraint audit_checkpoints_kid_length check (length(kid) between 1 and 128),
    constraint audit_checkpoints_public_key_length check (octet_length(public_key) = 32),
    constraint audit_checkpoints_statement_length check (length(statement) between 1 and 4096)
);
create trigger audit_checkpoints_append_only before update or delete or truncate on audit_checkpoints
    for each statement execute function app.audit_refuse();
alter table audit_checkpoints enable row level security;
alter table audit_checkpoints force row level security;
grant select, insert on audit_checkpoints to agentapi_operator;
grant select on audit_checkpoints to agentapi_tenant, agentapi_tenant_ro;
create policy audit_checkpoints_operator_read on audit_checkpoints for select to agentapi_operator using (true);
-- A head is read and signed, and may have moved on meanwhile; it can't be behind.
create policy audit_checkpoints_operator_add on audit_checkpoints for insert to agentapi_operator
    with check (exists (select 1 from audit_heads h where h.org_id = audit_checkpoints.org_id
                        and (h.seq > audit_checkpoints.seq
                             or (h.seq = audit_checkpoints.seq and h.hash = audit_checkpoints.hash))));
create policy audit_checkpoints_read on audit_checkpoints for select to agentapi_tenant
    using (org_id = (select app.current_org()) and (select app.is_admin()));
create policy audit_checkpoints_ro on audit_checkpoints for select to agentapi_tenant_ro
    using (org_id = (select app.current_org()));
create policy audit_checkpoints_no_update on audit_checkpoints as restrictive for update using (false);
create policy audit_checkpoints_no_delete on audit_checkpoints as restrictive for delete using (false);

-- ---------------------------------------------------------------------------------------------------------------
-- What is there already. FORCE would hide the rows from the owner that runs this file; nobody else sees the tables
-- before it commits.
alter table organizations no force row level security;
alter table workspaces no force row level security;
alter table mcp_connections no force row level security;
alter table prompt_policies no force row level security;
insert into audit_configs (org_id, elements)
select org, jsonb_object_agg(element, generation)
from (
    select id as org, 'Organization' as element, generation from organizations where deleted_at is null
    union all
    select org_id, 'Workspace/' || id, generation from workspaces where deleted_at is null
    union all
    select org_id, 'McpConnection/' || id, generation from mcp_connections
    union all
    select coalesce(org_id, '00000000-0000-0000-0000-000000000000'), 'PromptPolicy/' || id, generation
    from prompt_policies
) elements
group by org;
-- The row of everybody is always there: it is where a change of a global policy and all others meet.
insert into audit_configs (org_id) values ('00000000-0000-0000-0000-000000000000') on conflict do nothing;
alter table organizations force row level security;
alter table workspaces force row level security;
alter table mcp_connections force row level security;
alter table prompt_policies force row level security;
update audit_heads set config_digest = app.audit_config_digest(org_id);
