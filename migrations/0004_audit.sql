-- The audit log: append-only, one hash chain per organization, kept when the organization goes.
--
-- The change and its audit row are one transaction. The trigger numbers the row, stamps it and chains it while it
-- holds the organization's head, so that the order of the chain is the order of the commits.
-- runtime/src/audit/chain.rs computes the same hash from an export and finds an edited, removed or reordered row.

create table audit_log (
    -- No foreign key: rows outlive their organization, and nothing that happens to it may rewrite them.
    org_id        uuid not null default app.current_org(),
    seq           bigint not null,
    org_slug      text not null,
    at            timestamptz not null,
    db_role       text not null,
    actor         text not null,
    action        text not null,
    target_kind   text not null,
    target_id     text,
    request_id    text,
    source_ip     text,
    user_agent    text,
    detail        jsonb not null default '{}',
    config_digest text,
    prev_hash     bytea not null,
    hash          bytea not null,
    primary key (org_id, seq),
    constraint audit_log_seq_positive check (seq > 0),
    constraint audit_log_org_slug_length check (length(org_slug) between 1 and 50),
    constraint audit_log_actor_length check (length(actor) between 1 and 512),
    constraint audit_log_action_length check (length(action) between 1 and 128),
    constraint audit_log_target_kind_length check (length(target_kind) between 1 and 128),
    constraint audit_log_target_id_length check (length(target_id) <= 512),
    constraint audit_log_request_id_length check (length(request_id) <= 128),
    constraint audit_log_source_ip_length check (length(source_ip) <= 64),
    constraint audit_log_user_agent_length check (length(user_agent) <= 1024),
    constraint audit_log_detail_form check (jsonb_typeof(detail) = 'object' and octet_length(detail::text) <= 65536),
    constraint audit_log_config_digest_length check (length(config_digest) <= 128),
    constraint audit_log_hash_length check (octet_length(hash) = 32 and octet_length(prev_hash) = 32)
);
create index audit_log_by_time on audit_log (org_id, at desc);
create index audit_log_by_target on audit_log (org_id, target_kind, target_id, seq desc);

-- The newest link of each chain: what a verifier compares with to notice that the last rows are gone.
create table audit_heads (
    org_id   uuid primary key,
    org_slug text not null,
    seq      bigint not null,
    hash     bytea not null,
    constraint audit_heads_org_slug_length check (length(org_slug) between 1 and 50),
    constraint audit_heads_seq_positive check (seq >= 0),
    constraint audit_heads_hash_length check (octet_length(hash) = 32)
);

-- Canonical form: every field in this order as <length in bytes>:<text>, ('-,' for NULL). Lengths make it
-- unambiguous: no value can pretend to be two fields. The time is in microseconds since 1970, hashes are in hex.
create function app.audit_field(value text) returns text
    language sql immutable parallel safe
    begin atomic
        select case when value is null then '-,' else octet_length(value)::text || ':' || value || ',' end;
    end;

create function app.audit_hash(r audit_log) returns bytea
    language sql stable parallel safe
    begin atomic
        select sha256(convert_to(
            app.audit_field('agentapi.audit.v1')
            || app.audit_field(r.org_id::text)
            || app.audit_field(r.seq::text)
            || app.audit_field(r.org_slug)
            || app.audit_field((extract(epoch from r.at) * 1000000)::bigint::text)
            || app.audit_field(r.db_role)
            || app.audit_field(r.actor)
            || app.audit_field(r.action)
            || app.audit_field(r.target_kind)
            || app.audit_field(r.target_id)
            || app.audit_field(r.request_id)
            || app.audit_field(r.source_ip)
            || app.audit_field(r.user_agent)
            || app.audit_field(r.detail::text)
            || app.audit_field(r.config_digest)
            || app.audit_field(encode(r.prev_hash, 'hex')), 'UTF8'));
    end;

-- First trigger, with the caller's rights: says who wrote the row, and keeps a tenant away from another's head.
create function app.audit_who() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if current_user <> 'agentapi_operator' and new.org_id is distinct from app.current_org() then
        raise insufficient_privilege using
            message = 'an audit row belongs to the organization of the role that writes it',
            hint = 'SET LOCAL ROLE to the role of the organization, or leave org_id out';
    end if;
    new.db_role := current_user;
    return new;
end $$;

-- Second trigger, SECURITY DEFINER: the chain needs the head, which no tenant may write (it could then fork the
-- chain), and the newest row, which a user without the role 'admin' may not read. It touches nothing but
-- audit_heads, takes no argument and builds no SQL.
create function app.audit_chain() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    head public.audit_heads;
begin
    select * into head from public.audit_heads h where h.org_id = new.org_id for update;
    if not found then
        if new.org_slug is null then
            raise not_null_violation using
                message = 'the first audit row of an organization needs org_slug',
                hint = 'the operator writes it in the transaction that inserts the organization';
        end if;
        insert into public.audit_heads (org_id, org_slug, seq, hash)
        values (new.org_id, new.org_slug, 0, decode(repeat('00', 32), 'hex'))
        on conflict (org_id) do nothing;
        select * into strict head from public.audit_heads h where h.org_id = new.org_id for update;
    end if;
    new.org_slug := head.org_slug;
    new.seq := head.seq + 1;
    new.prev_hash := head.hash;
    new.at := clock_timestamp();
    new.hash := app.audit_hash(new);
    update public.audit_heads h set seq = new.seq, hash = new.hash where h.org_id = new.org_id;
    return new;
end $$;

create trigger audit_log_1_who before insert on audit_log for each row execute function app.audit_who();
create trigger audit_log_2_chain before insert on audit_log for each row execute function app.audit_chain();

create function app.audit_refuse() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    raise insufficient_privilege using
        message = format('%s is append-only: %s is refused', tg_table_name, tg_op),
        hint = 'write another row that corrects it';
end $$;
create trigger audit_log_append_only before update or delete or truncate on audit_log
    for each statement execute function app.audit_refuse();
create trigger audit_heads_kept before delete or truncate on audit_heads
    for each statement execute function app.audit_refuse();

-- A head only ever moves one link on.
create function app.audit_head_step() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if new.org_id <> old.org_id or new.org_slug <> old.org_slug or new.seq <> old.seq + 1 then
        raise insufficient_privilege using message = 'audit_heads moves only with a new row of audit_log';
    end if;
    return new;
end $$;
create trigger audit_heads_step before update on audit_heads for each row execute function app.audit_head_step();

-- Column grants: nobody brings their own number, time or hash.
alter table audit_log enable row level security;
alter table audit_log force row level security;
grant insert (org_id, org_slug, actor, action, target_kind, target_id, request_id, source_ip, user_agent, detail,
              config_digest) on audit_log to agentapi_tenant, agentapi_operator;
grant select on audit_log to agentapi_tenant, agentapi_tenant_ro;
create policy audit_log_read on audit_log for select to agentapi_tenant
    using (org_id = (select app.current_org()) and (select app.is_admin()));
create policy audit_log_ro on audit_log for select to agentapi_tenant_ro
    using (org_id = (select app.current_org()));
create policy audit_log_add on audit_log for insert to agentapi_tenant
    with check (org_id = (select app.current_org()));
-- The operator writes for organizations that exist: the last row comes before the DELETE, in its transaction.
create policy audit_log_operator on audit_log for insert to agentapi_operator
    with check (exists (select 1 from organizations o where o.id = audit_log.org_id and o.slug = audit_log.org_slug));
create policy audit_log_no_update on audit_log as restrictive for update using (false);
create policy audit_log_no_delete on audit_log as restrictive for delete using (false);

alter table audit_heads enable row level security;
alter table audit_heads force row level security;
grant select on audit_heads to agentapi_tenant, agentapi_tenant_ro, agentapi_operator;
-- FORCE binds the owner too, and app.audit_chain() runs as the owner.
create policy audit_heads_chain_read on audit_heads for select to agentapi_owner using (true);
create policy audit_heads_chain_add on audit_heads for insert to agentapi_owner with check (true);
create policy audit_heads_chain_move on audit_heads for update to agentapi_owner using (true) with check (true);
create policy audit_heads_read on audit_heads for select to agentapi_tenant, agentapi_tenant_ro
    using (org_id = (select app.current_org()));
create policy audit_heads_operator on audit_heads for select to agentapi_operator using (true);
create policy audit_heads_no_delete on audit_heads as restrictive for delete using (false);
