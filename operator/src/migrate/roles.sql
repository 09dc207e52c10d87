-- Roles of the whole server. Idempotent; run by the administrator under the lock of `migrate`.
do $$
declare
    wanted record;
begin
    for wanted in
        select * from (values
            ('agentapi_owner',     'nologin inherit nocreatedb nocreaterole'),
            ('agentapi_operator',  'login inherit nocreatedb createrole'),
            ('agentapi_runtime',   'login noinherit nocreatedb nocreaterole'),
            ('agentapi_tenant',    'nologin inherit nocreatedb nocreaterole'),
            ('agentapi_tenant_ro', 'nologin inherit nocreatedb nocreaterole')
        ) as roles (name, attributes)
    loop
        if not exists (select from pg_roles where rolname = wanted.name) then
            execute format('create role %I', wanted.name);
        end if;
        execute format('alter role %I %s', wanted.name, wanted.attributes);
        -- Only a superuser may even mention these.
        if (select rolsuper from pg_roles where rolname = current_user) then
            execute format('alter role %I nosuperuser nobypassrls noreplication', wanted.name);
        end if;
    end loop;

    -- Migrations run as agentapi_owner; an administrator who is not a superuser has to be a member for SET ROLE.
    if not pg_has_role(current_user, 'agentapi_owner', 'member') then
        execute format('grant agentapi_owner to %I', current_user);
    end if;

    -- From Postgres 16 on, CREATEROLE alone may not put new roles into a group.
    if current_setting('server_version_num')::int >= 160000 then
        execute 'grant agentapi_tenant, agentapi_tenant_ro to agentapi_operator '
                'with admin true, inherit false, set false';
    end if;
end $$;
