-- A row of the audit log costs less: no call of app.current_org() per row, and one trigger instead of two.
--
-- Who wrote a row is a default that nobody may set (there is no grant for the column). That it is the organization's own
-- role, or the operator, is checked where the head is at hand, which knows the organization's name and with it the role;
-- the policy asks the same once per statement, from tenant_roles.
alter table audit_log alter db_role set default current_user;
drop trigger audit_log_1_who on audit_log;
drop function app.audit_who();

create or replace function app.audit_chain() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    head public.audit_heads;
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
    new.org_slug := head.org_slug;
    new.seq := head.seq + 1;
    new.prev_hash := head.hash;
    new.config_digest := head.config_digest;
    new.at := clock_timestamp();
    new.hash := app.audit_hash(new);
    update public.audit_heads h set seq = new.seq, hash = new.hash where h.org_id = new.org_id;
    return new;
end $$;

-- Every value of a head is that of a row, where it was checked.
alter table audit_heads drop constraint audit_heads_org_slug_length, drop constraint audit_heads_seq_positive,
    drop constraint audit_heads_hash_length, drop constraint audit_heads_config_digest_length;
