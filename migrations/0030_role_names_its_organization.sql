-- The role that the runtime takes on is called {<id of the organization>}, which is a uuid as Postgres reads it. Every policy
-- asks app.current_org() once per query; to know the answer from current_user alone, without a look into a table, saves
-- more than half of what row-level security costs (measured with `cargo xtask bench rls`). org_<slug> and org_<slug>_ro, for
-- people, stand for what tenant_roles says, as before. Only names of the first kind sort behind all letters.
create function app.org_in_role_name() returns uuid
    language sql stable parallel safe
    return case when current_user >= '{' then current_user::uuid end;

create function app.org_of_role() returns uuid
    language plpgsql stable parallel safe
as $$
declare
    me constant name := current_user;
    org uuid;
begin
    select r.org_id into org from public.tenant_roles r where r.role_name operator(pg_catalog.=) me;
    return org;
end $$;

-- One expression and no FROM: the planner puts it into the query, where a function that is called costs more than it does.
create or replace function app.current_org() returns uuid
    language sql stable parallel safe
    return coalesce(app.org_in_role_name(), app.org_of_role());

grant execute on function app.org_in_role_name(), app.org_of_role()
    to agentapi_operator, agentapi_runtime, agentapi_tenant, agentapi_tenant_ro;

-- Not app.current_org(): that one reads this table.
alter policy tenant_roles_own on tenant_roles
    using (role_name = (select current_user) or (org_id = (select app.org_in_role_name()) and not read_only));

-- The runtime takes on the role with the id as soon as the operator has made it.
create or replace view app.tenants with (security_invoker = true) as
    select o.id, o.slug,
           case when to_regrole('"{' || o.id || '}"') is null then r.role_name
                else ('{' || o.id || '}')::name end as role_name,
           o.issuer, o.audience, o.jwks_uri, o.org_claim_value, o.identity, o.quota
    from public.organizations o
    join public.tenant_roles r on r.org_id = o.id and not r.read_only
    where o.deleted_at is null;

-- As before, and the role with the id may write too.
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
    if new.db_role <> 'agentapi_operator' and new.db_role <> '{' || new.org_id || '}'
        and new.db_role is distinct from 'org_' || replace(head.org_slug, '-', '_')
    then
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
