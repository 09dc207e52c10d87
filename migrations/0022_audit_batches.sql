-- The audit log: a statement with many rows moves the head once, at its end. Each move was a new version of the head's
-- row, and every later row of the statement had to walk past all of them.
--
-- The next number and hash come from the newest row of the log itself. The head is still locked first, so that one
-- transaction at a time adds to a chain, and it is what tells a first row from a later one. The owner, as whom the chain's
-- triggers run, sees rows from within a trigger and nowhere else.
create policy audit_log_chain_read on audit_log for select to agentapi_owner using (pg_trigger_depth() > 0);

create or replace function app.audit_chain() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    head public.audit_heads;
    added bigint;
    added_hash bytea;
begin
    select * into head from public.audit_heads h where h.org_id = new.org_id for no key update;
    -- Without a head there is no such role: only the operator begins a chain.
    if new.db_role <> 'agentapi_operator' and new.db_role is distinct from 'org_' || replace(head.org_slug, '-', '_') then
        raise insufficient_privilege using
            message = 'an audit row belongs to the organization of the role that writes it',
            hint = 'SET LOCAL ROLE to the role of the organization, or leave org_id out';
    end if;
    if not found then
        if new.org_slug is null then
            raise not_null_violation using
                message = 'the first audit row of an organization needs org_slug',
                hint = 'the operator writes it in the transaction that inserts the organization';
        end if;
        insert into public.audit_heads (org_id, org_slug, seq, hash, config_digest)
        values (new.org_id, new.org_slug, 0, decode(repeat('00', 32), 'hex'), app.audit_config_digest(new.org_id))
        on conflict (org_id) do nothing;
        select * into strict head from public.audit_heads h where h.org_id = new.org_id for no key update;
    end if;
    -- Rows of this very statement are ahead of the head.
    select a.seq, a.hash into added, added_hash from public.audit_log a
    where a.org_id = new.org_id and a.seq > head.seq order by a.seq desc limit 1;
    new.org_slug := head.org_slug;
    new.seq := coalesce(added, head.seq) + 1;
    new.prev_hash := coalesce(added_hash, head.hash);
    new.config_digest := head.config_digest;
    new.at := clock_timestamp();
    new.hash := app.audit_hash(new);
    return new;
end $$;

-- SECURITY DEFINER as app.audit_chain() is, and for the same reason: nobody else may move a head. It takes nothing but
-- the rows that fired it.
create function app.audit_head_follows() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update public.audit_heads h set seq = newest.seq, hash = newest.hash
    from (select distinct on (a.org_id) a.org_id, a.seq, a.hash from added a order by a.org_id, a.seq desc) newest
    where h.org_id = newest.org_id;
    return null;
end $$;
create trigger audit_log_3_head after insert on audit_log referencing new table as added
    for each statement execute function app.audit_head_follows();

-- A head moves on to a row that is there, or gets another digest and stays where it is.
drop trigger audit_heads_step on audit_heads;
create trigger audit_heads_step before update on audit_heads for each row
    when ((new.org_id, new.org_slug, new.seq, new.hash) is distinct from (old.org_id, old.org_slug, old.seq, old.hash))
    execute function app.audit_head_step();
create or replace function app.audit_head_step() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if new.org_id <> old.org_id or new.org_slug <> old.org_slug or new.seq <= old.seq or not exists (
        select from public.audit_log a where a.org_id = new.org_id and a.seq = new.seq and a.hash = new.hash)
    then
        raise insufficient_privilege using message = 'audit_heads moves only with a new row of audit_log';
    end if;
    return new;
end $$;

-- The same hash, byte for byte; a value that is made into text is so once and not once for its length.
create or replace function app.audit_hash(r audit_log) returns bytea
    language plpgsql stable parallel safe
as $$
declare
    number constant text := r.seq::text;
    micros constant text := (extract(epoch from r.at) * 1000000)::bigint::text;
    detail constant text := r.detail::text;
begin
    return sha256(convert_to('17:agentapi.audit.v1,36:' || r.org_id || ','
        || length(number) || ':' || number || ','
        || octet_length(r.org_slug) || ':' || r.org_slug || ','
        || length(micros) || ':' || micros || ','
        || octet_length(r.db_role) || ':' || r.db_role || ','
        || octet_length(r.actor) || ':' || r.actor || ','
        || octet_length(r.action) || ':' || r.action || ','
        || octet_length(r.target_kind) || ':' || r.target_kind || ','
        || coalesce(octet_length(r.target_id) || ':' || r.target_id, '-') || ','
        || coalesce(octet_length(r.request_id) || ':' || r.request_id, '-') || ','
        || coalesce(octet_length(r.source_ip) || ':' || r.source_ip, '-') || ','
        || coalesce(octet_length(r.user_agent) || ':' || r.user_agent, '-') || ','
        || octet_length(detail) || ':' || detail || ','
        || coalesce(octet_length(r.config_digest) || ':' || r.config_digest, '-') || ','
        || '64:' || encode(r.prev_hash, 'hex') || ',', 'UTF8'));
end $$;

-- One question instead of two, and none that is left for each row: the planner takes a filter for a reason to read and
-- sort all of an organization's rows where the index has the newest ones first.
alter policy audit_log_read on audit_log
    using (org_id = (select case when app.is_admin() then app.current_org() end));
