-- Functions of Postgres itself that reach across tenants, closed to their read-only logins. Superuser only.
do $$
declare
    fn regprocedure;
begin
    for fn in
        select p.oid::regprocedure from pg_proc p
        where p.pronamespace = 'pg_catalog'::regnamespace
          -- Advisory locks are shared by the whole database: one tenant could hold the locks of the platform.
          and (p.proname ~ '^pg_(try_)?advisory_'
               -- Large objects are the one thing that a role without any grant could still store.
               or p.proname in ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_put', 'lowrite', 'lo_truncate',
                                'lo_truncate64'))
    loop
        execute format('revoke execute on function %s from public', fn);
        if fn::text like '%advisory%' then
            execute format('grant execute on function %s to agentapi_owner, agentapi_operator, agentapi_runtime', fn);
        end if;
    end loop;
end $$;
