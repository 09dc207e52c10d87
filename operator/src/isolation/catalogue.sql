-- Everything in the catalogue of this database that weakens the fences between organizations: one row per finding, no
-- row when all is well. Reads pg_catalog only; needs no privilege but to connect.
with
tables as (
    select c.oid, c.relname, c.relrowsecurity, c.relforcerowsecurity, c.oid::regclass::text as name
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    -- The migrator's own table: no tenant's data, no grants.
    where c.relkind in ('r', 'p') and n.nspname in ('public', 'app') and c.relname <> '_sqlx_migrations'
),
org_columns as (
    select t.oid, t.name, a.attnum, a.attnotnull
    from tables t join pg_attribute a on a.attrelid = t.oid
    where not a.attisdropped and a.attname = case t.relname when 'organizations' then 'id' else 'org_id' end
),
commands (letter, command) as (values ('r', 'SELECT'), ('a', 'INSERT'), ('w', 'UPDATE'), ('d', 'DELETE')),
groups as (select oid from pg_roles where rolname in ('agentapi_tenant', 'agentapi_tenant_ro')),
-- Roles of tenants: `{<id>}` and `org_<name>` write, `org_<name>_ro` reads.
tenants as (select oid, rolname, rolname ~ '_ro$' as reads from pg_roles where rolname ~ '^(org_|[{])'),
platform as (select oid, rolname from tenants union all select oid, rolname from pg_roles where rolname ~ '^agentapi_'),
functions as (
    select p.oid, p.oid::regprocedure::text as name, p.prosecdef, p.proconfig, p.proowner, p.proacl
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('public', 'app', 'fences')
),
views as (
    select c.oid::regclass::text as name, c.relkind, coalesce(c.reloptions, '{}') as options
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('v', 'm', 'f') and n.nspname in ('public', 'app')
),
grants as (
    select 'table ' || c.oid::regclass as object, acl.* from pg_class c join pg_namespace n on n.oid = c.relnamespace,
        aclexplode(c.relacl) acl where n.nspname in ('public', 'app', 'fences')
    union all
    select 'column ' || c.oid::regclass || '.' || a.attname, acl.* from pg_attribute a join pg_class c on c.oid = a.attrelid
        join pg_namespace n on n.oid = c.relnamespace, aclexplode(a.attacl) acl where n.nspname in ('public', 'app', 'fences')
    union all
    select 'function ' || f.name, acl.* from functions f, aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) acl
    union all
    select 'schema ' || n.nspname, acl.* from pg_namespace n, aclexplode(n.nspacl) acl where n.nspname in ('public', 'app', 'fences')
    union all
    select 'database ' || d.datname, acl.* from pg_database d,
        aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) acl where d.datname = current_database()
)
select name || ': row-level security is not enabled' from tables where not relrowsecurity
union all
select name || ': row-level security is not forced, its owner walks through' from tables where not relforcerowsecurity
union all
select t.name || ': no policy for ' || c.command from tables t cross join commands c
where not exists (select from pg_policy p where p.polrelid = t.oid and p.polcmd in (c.letter::"char", '*'))
union all
select t.name || ': no column org_id' from tables t where not exists (select from org_columns o where o.oid = t.oid)
union all
-- Global prompt policies are the one kind of row that belongs to nobody.
select name || ': org_id may be null' from org_columns where not attnotnull and name <> 'prompt_policies'
union all
select o.name || ': no index starts with org_id' from org_columns o
where not exists (select from pg_index i where i.indrelid = o.oid and i.indkey[0] = o.attnum and i.indpred is null)
union all
select c.conrelid::regclass || ': foreign key ' || c.conname || ' can point into another organization'
from pg_constraint c join org_columns o on o.oid = c.conrelid join org_columns f on f.oid = c.confrelid
where c.contype = 'f' and not exists (
    select from generate_subscripts(c.conkey, 1) i where c.conkey[i] = o.attnum and c.confkey[i] = f.attnum)
union all
select p.polrelid::regclass || ': policy ' || p.polname || ' is for PUBLIC' from pg_policy p
where p.polpermissive and p.polroles = '{0}'
union all
select p.polrelid::regclass || ': policy ' || p.polname || ' does not ask for the organization of the role'
from pg_policy p
where p.polpermissive and p.polroles && (select array_agg(oid) from groups)
  and (coalesce(pg_get_expr(p.polqual, p.polrelid), 'app.current_org()') !~ 'app\.current_org\(\)|role_name = .*CURRENT_USER'
       or coalesce(pg_get_expr(p.polwithcheck, p.polrelid), 'app.current_org()') !~ 'app\.current_org\(\)')
union all
select p.polrelid::regclass || ': policy ' || p.polname || ' reads its own table, which recurses' from pg_policy p
where concat(pg_get_expr(p.polqual, p.polrelid), ' ', pg_get_expr(p.polwithcheck, p.polrelid))
      ~ ('(FROM|JOIN) \(*(public\.)?' || p.polrelid::regclass || '\M')
union all
select 'role ' || r.rolname || ' has ' || case when r.rolsuper then 'SUPERUSER' else 'BYPASSRLS' end
from pg_roles r where (r.rolsuper or r.rolbypassrls) and r.oid <> 10  -- 10: who ran initdb
union all
select 'role ' || r.rolname || ' has REPLICATION' from pg_roles r where r.rolreplication and r.oid <> 10
union all
select 'role ' || r.rolname || ' has CREATEROLE' from pg_roles r join platform using (oid)
where r.rolcreaterole and r.rolname <> 'agentapi_operator'
union all
select 'role agentapi_runtime inherits what its tenants may do' from pg_roles where rolname = 'agentapi_runtime' and rolinherit
union all
select 'role ' || r.rolname || ' can log in' from pg_roles r
where r.rolcanlogin and (r.rolname in ('agentapi_owner', 'agentapi_tenant', 'agentapi_tenant_ro')
                         or r.oid in (select oid from tenants where not reads))
union all
select 'role ' || m.rolname || ' is a member of ' || g.rolname
from pg_auth_members am join platform m on m.oid = am.member join pg_roles g on g.oid = am.roleid
where not (
    (m.oid in (select oid from tenants where reads) and g.rolname = 'agentapi_tenant_ro')
    or (m.oid in (select oid from tenants where not reads) and g.rolname = 'agentapi_tenant')
    or (m.rolname = 'agentapi_runtime' and g.oid in (select oid from tenants where not reads))
    -- From Postgres 16 on a creator administers what it made and neither inherits nor takes it on.
    or (m.rolname = 'agentapi_operator' and current_setting('server_version_num')::int >= 160000
        and (g.oid in (select oid from tenants) or g.rolname ~ '^agentapi_tenant')))
union all
select 'view ' || name || ' runs with its owner''s rights: no security_invoker' from views
where relkind = 'v' and not options && '{security_invoker=true,security_invoker=on,security_invoker=1}'::text[]
union all
select 'materialized view or foreign table ' || name || ' knows no row-level security' from views where relkind in ('m', 'f')
union all
-- Why each one must be is written where it is created.
select 'function ' || name || ' is SECURITY DEFINER' from functions where prosecdef and name not in
    ('app.audit_chain()', 'app.audit_head_follows()', 'app.restore_fences()', 'app.audit_config_organization()', 'app.audit_config_workspace()', 'app.audit_config_resource()')
union all
select 'function ' || name || ' is SECURITY DEFINER without a fixed search_path' from functions
where prosecdef and not coalesce(proconfig, '{}')::text ~ 'search_path=pg_catalog, pg_temp'
union all
select object || ': ' || privilege_type || ' is granted to PUBLIC' from grants where grantee = 0
union all
select object || ': ' || privilege_type || ' is granted to ' || r.rolname from grants join pg_roles r on r.oid = grantee
where privilege_type in ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'CREATE', 'TEMPORARY')
  and r.rolname not in ('agentapi_owner', 'pg_database_owner')
union all
select object || ' is granted with the right to pass it on to ' || r.rolname from grants join pg_roles r on r.oid = grantee
where is_grantable and grantee not in (10) and r.rolname not in ('agentapi_owner', 'pg_database_owner')
union all
-- Who could write the snapshot could have anything "restored".
select object || ': ' || privilege_type || ' is granted to ' || r.rolname from grants join pg_roles r on r.oid = grantee
where object ~ '^(table|column|function) fences\.' and r.rolname <> 'agentapi_owner'
  and not (r.rolname = 'agentapi_operator' and privilege_type in ('SELECT', 'EXECUTE'))
union all
select c.oid::regclass || ' is owned by ' || pg_get_userbyid(c.relowner) from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where n.nspname in ('public', 'app', 'fences') and c.relkind in ('r', 'p', 'v', 'm', 'S') and pg_get_userbyid(c.relowner) <> 'agentapi_owner'
union all
select 'function ' || name || ' is owned by ' || pg_get_userbyid(proowner) from functions
where pg_get_userbyid(proowner) <> 'agentapi_owner'
union all
select t.tgrelid::regclass || ': trigger ' || t.tgname || ' is switched off' from pg_trigger t join tables on tables.oid = t.tgrelid
where t.tgenabled <> 'O'
union all
select 'audit_log: trigger ' || wanted || ' is missing'
from unnest('{audit_log_2_chain,audit_log_3_head,audit_log_append_only}'::text[]) wanted
where not exists (select from pg_trigger where tgrelid = to_regclass('public.audit_log') and tgname = wanted)
order by 1
