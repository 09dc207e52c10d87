-- The fences as the migrations left them, so that whatever weakens one later is seen and can be put back.
--
-- `agentapi-operator migrate` takes the snapshot after it has run these files. The operator compares it with the live
-- catalogue all the time. It may ask for a repair (app.restore_fences) and can't choose what: the snapshot is the
-- owner's alone, and nobody logs in as the owner.
create schema fences;
revoke all on schema fences from public;
grant usage on schema fences to agentapi_operator;

-- One row per fence. `put` is the statement that makes it as it is.
create table fences.snapshot (
    kind   text not null,
    object text not null,
    put    text not null,
    primary key (kind, object)
);
grant select on fences.snapshot to agentapi_operator;

-- The fences as they are now; `take` removes what is there, where that is possible at all. Names come out qualified
-- and quoted because of the search_path. Rights of the owner are left out: it has all of them.
create function fences.live() returns table (kind text, object text, put text, take text)
    language sql stable set search_path = pg_catalog, pg_temp
as $$
    with relations as (
        select c.oid, c.relname, c.relkind, c.relrowsecurity, c.relforcerowsecurity, c.relacl, c.relowner, c.reloptions,
               c.oid::regclass::text as name
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname in ('public', 'app', 'fences') and c.relkind in ('r', 'p', 'v', 'm', 'S')
    ),
    tables as (select * from relations where relkind in ('r', 'p') and relname <> '_sqlx_migrations'
               and oid <> 'fences.snapshot'::regclass),
    functions as (
        select p.oid, p.oid::regprocedure::text as name, p.prokind, coalesce(p.proacl, acldefault('f', p.proowner)) as acl,
               p.proowner
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('public', 'app', 'fences')
    ),
    acls as (
        select case relkind when 'S' then 'sequence ' else 'table ' end || name as target, '' as columns, a.*, relowner as owner
        from relations, aclexplode(relacl) a
        union all
        select 'table ' || r.name, format(' (%I)', a.attname), x.*, r.relowner
        from relations r join pg_attribute a on a.attrelid = r.oid, aclexplode(a.attacl) x where not a.attisdropped
        union all
        select 'routine ' || f.name, '', a.*, f.proowner from functions f, aclexplode(f.acl) a
        union all
        select format('schema %I', n.nspname), '', a.*, n.nspowner from pg_namespace n, aclexplode(n.nspacl) a
        where n.nspname in ('public', 'app', 'fences')
    ),
    grants as (
        select lower(privilege_type) || columns as what, target,
               case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end as who,
               bool_or(is_grantable) as grantable
        from acls where grantee <> owner group by 1, 2, 3
    )
    select 'function', 'function ' || name, pg_get_functiondef(oid), null from functions where prokind in ('f', 'p')
    union all
    select 'view', 'view ' || name,
           'create or replace view ' || name || coalesce(' with (' || array_to_string(reloptions, ', ') || ')', '')
           || ' as ' || pg_get_viewdef(oid), null
    from relations where relkind = 'v'
    union all
    select 'rls', 'row-level security of ' || name,
           format('alter table %s %s row level security, %s row level security', name,
                  case when relrowsecurity then 'enable' else 'disable' end,
                  case when relforcerowsecurity then 'force' else 'no force' end), null
    from tables
    union all
    select 'policy', format('policy %I on %s', p.polname, t.name),
           format('create policy %I on %s as %s for %s to %s', p.polname, t.name,
                  case when p.polpermissive then 'permissive' else 'restrictive' end,
                  case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete'
                                else 'all' end,
                  (select string_agg(case r when 0 then 'public' else quote_ident(pg_get_userbyid(r)) end, ', ' order by r)
                   from unnest(p.polroles) r))
           || coalesce(' using (' || pg_get_expr(p.polqual, p.polrelid) || ')', '')
           || coalesce(' with check (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', ''),
           format('drop policy %I on %s', p.polname, t.name)
    from pg_policy p join relations t on t.oid = p.polrelid
    union all
    select 'trigger', format('trigger %I on %s', g.tgname, t.name),
           pg_get_triggerdef(g.oid) || format('; alter table %s %s trigger %I', t.name,
               case g.tgenabled when 'O' then 'enable' when 'D' then 'disable' when 'R' then 'enable replica'
                                else 'enable always' end, g.tgname),
           format('drop trigger %I on %s', g.tgname, t.name)
    from pg_trigger g join relations t on t.oid = g.tgrelid where not g.tgisinternal
    union all
    select 'grant', format('%s on %s for %s', what, target, who),
           format('grant %s on %s to %s', what, target, who) || case when grantable then ' with grant option' else '' end,
           format('revoke %s on %s from %s cascade', what, target, who)
    from grants
$$;

-- For the owner: what is live now is how it must be.
create function fences.take_snapshot() returns bigint
    language sql set search_path = pg_catalog, pg_temp
as $$
    delete from fences.snapshot;
    insert into fences.snapshot (kind, object, put) select kind, object, put from fences.live();
    select count(*) from fences.snapshot;
$$;

-- One sentence for each fence that is not as the migrations left it.
create function fences.drift() returns table (finding text)
    language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from fences.snapshot) then
        raise object_not_in_prerequisite_state using
            message = 'there is no snapshot of the fences to compare with: a migration is under way or has failed',
            hint = 'look at the log of agentapi-operator migrate';
    end if;
    return query
        select coalesce(s.object, l.object) || case when s.put is null then ' was added' when l.put is null then ' is missing'
                                                    else ' was changed' end
        from fences.snapshot s full join fences.live() l using (kind, object)
        where s.put is distinct from l.put order by 1;
end $$;

grant execute on function fences.live(), fences.drift() to agentapi_operator;

-- Puts every fence back and says what it did. SECURITY DEFINER, since only the owner of a table can change its
-- policies, rights and triggers. It takes no argument; what it executes comes from the snapshot, which nobody but the
-- owner can write, and for removals from quoted names of the catalogue. One at a time, and never beside a migration
-- (the key is that of migrate's lock). lock_timeout: traffic must not wait behind a repair that waits.
create function app.restore_fences() returns setof text
    language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '3s'
as $$
declare
    fence record;
begin
    if not pg_try_advisory_xact_lock(7018690069353558122) then
        return next 'a migration or another repair is at work';
        return;
    end if;
    if not exists (select from fences.snapshot) then
        return next 'there is no snapshot of the fences';
        return;
    end if;
    for fence in
        with live as materialized (select * from fences.live())
        select coalesce(s.object, l.object) as object, s.put, case when l.put is not null then l.take end as take
        from fences.snapshot s full join live l using (kind, object)
        where s.put is distinct from l.put
        -- What others are made of comes first.
        order by array_position('{function,view,rls,policy,trigger,grant}'::text[], kind), 1
    loop
        begin
            if fence.put is null and fence.take is null then
                return next fence.object || ' is not of the migrations; look at it and drop it';
                continue;
            end if;
            if fence.take is not null then
                execute fence.take;
            end if;
            if fence.put is not null then
                execute fence.put;
            end if;
            return next fence.object || ' is as it was';
        exception when others then
            return next fence.object || ' can''t be put back: ' || sqlerrm;
        end;
    end loop;
end $$;
grant execute on function app.restore_fences() to agentapi_operator;

-- Tries, with the rights of whoever calls it, to see and to write rows of other organizations in every table that has
-- an organization, and to become another role. One sentence for each attempt that came through; the caller rolls back.
-- "<" and ">" and not "<>": an index on org_id answers both at once, however many rows the organization has itself.
create function app.probe_isolation() returns setof text
    language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '2s'
as $$
declare
    own constant uuid := app.current_org();
    stranger constant uuid := gen_random_uuid();
    place record;
    other text;
    beyond text;
    seen boolean;
    touched bigint;
begin
    if own is null then
        return next current_user || ' stands for no organization';
        return;
    end if;
    for place in
        select c.oid::regclass::text as name, a.attname as org, c.relkind in ('r', 'p') as is_table
        from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_attribute a on a.attrelid = c.oid
        where n.nspname in ('public', 'app') and c.relkind in ('r', 'p', 'v', 'm') and not a.attisdropped
          and a.attname = case c.relname when 'organizations' then 'id' else 'org_id' end
        order by 1
    loop
        foreach beyond in array '{<,>}'::text[] loop
            begin
                execute format('select exists (select from %s where %I %s $1)', place.name, place.org, beyond)
                    into seen using own;
                if seen then
                    return next place.name || ': rows of another organization can be seen';
                end if;
            exception when insufficient_privilege then null;
            end;
            continue when not place.is_table;
            begin
                execute format('update %s set %I = %I where %I %s $1', place.name, place.org, place.org, place.org, beyond)
                    using own;
                get diagnostics touched = row_count;
                if touched > 0 then
                    raise sqlstate 'AG001';
                end if;
            exception when insufficient_privilege then null;
                when sqlstate 'AG001' then return next place.name || ': rows of another organization can be changed';
            end;
            begin
                execute format('delete from %s where %I %s $1', place.name, place.org, beyond) using own;
                get diagnostics touched = row_count;
                if touched > 0 then
                    raise sqlstate 'AG001';
                end if;
            exception when insufficient_privilege then null;
                when sqlstate 'AG001' then return next place.name || ': rows of another organization can be deleted';
            end;
        end loop;
        continue when not place.is_table;
        begin
            -- Policies are asked before constraints: any other refusal than theirs means that they let the row through.
            execute format('insert into %s (%I) values ($1)', place.name, place.org) using stranger;
            raise sqlstate 'AG001';
        exception when insufficient_privilege then null;
            when lock_not_available then raise;
            when others then return next place.name || ': a row for another organization passes the policies';
        end;
    end loop;
    -- The runtime's login may take on every tenant's role; a tenant's own login none but its group's, which is nobody's.
    if current_user = session_user then
        for other in
            select rolname from pg_roles where rolname ~ '^(org|agentapi)_' and rolname not in (current_user, 'agentapi_tenant_ro')
            order by 1 limit 200
        loop
            begin
                execute format('set local role %I', other);
                raise sqlstate 'AG001';
            exception when insufficient_privilege then null;
                when sqlstate 'AG001' then return next 'the login can become ' || other;
            end;
        end loop;
    end if;
end $$;
grant execute on function app.probe_isolation() to agentapi_tenant, agentapi_tenant_ro;
