-- Foundation: who may come in at all, and how a transaction becomes a tenant's.
--
-- `agentapi-operator migrate` has created the roles before this file runs, and runs it as agentapi_owner:
--   agentapi_owner      NOLOGIN   owns everything below; nobody logs in as it
--   agentapi_operator   LOGIN     the operator: organizations, workspaces, connections, policies, roles of tenants
--   agentapi_runtime    LOGIN     the API: sees identities only, until it does SET LOCAL ROLE org_<slug>
--   agentapi_tenant     NOLOGIN   holds the table grants that every org_<slug> inherits
--   agentapi_tenant_ro  NOLOGIN   holds the SELECT grants that every org_<slug>_ro inherits
--
-- The rule of every table: the organization comes from current_user, which a client can't choose. The settings
-- app.user_id and app.user_role only narrow *within* that organization.
-- docs/database.md is the text for people; tests/expectations/rls.yaml is the table of who may do what.

-- Whatever is created later starts closed: Postgres would let PUBLIC execute every new function.
alter default privileges revoke execute on functions from public;
alter default privileges revoke all on tables from public;
alter default privileges revoke all on sequences from public;
alter default privileges revoke usage on types from public;

revoke all on schema public from public;
grant usage on schema public to agentapi_operator, agentapi_runtime, agentapi_tenant, agentapi_tenant_ro;

create schema app;
revoke all on schema app from public;
grant usage on schema app to agentapi_operator, agentapi_runtime, agentapi_tenant, agentapi_tenant_ro;
comment on schema app is 'Helper functions and views of the policies. No tables, no data.';

-- ---------------------------------------------------------------------------------------------------------------
-- organizations: id is metadata.uid of the Organization, so that a tenant deleted and created again under the same
-- name is another tenant, with another audit chain.
create table organizations (
    id               uuid primary key,
    slug             text not null,
    display_name     text not null,
    issuer           text not null,
    audience         text not null,
    jwks_uri         text,
    org_claim_value  text not null,
    identity         jsonb not null default '{}',
    quota            jsonb not null default '{}',
    deletion_policy  text not null default 'Retain',
    generation       bigint not null default 0,
    -- Not data: tenants hold UPDATE on this one column so that app.lock_organization() may lock the row.
    admission_lock   boolean not null default false,
    created_at       timestamptz not null default now(),
    updated_at       timestamptz not null default now(),
    deleted_at       timestamptz,
    -- '-' becomes '_' in role names, and org_<slug>_ro is a role of its own: a slug that ends in -ro could name
    -- another organization's read-only login.
    constraint organizations_slug_form check (slug ~ '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$' and slug !~ '-ro$'),
    constraint organizations_slug_length check (length(slug) between 1 and 50),
    constraint organizations_display_name_length check (length(display_name) between 1 and 200),
    constraint organizations_issuer_length check (length(issuer) between 1 and 2048),
    constraint organizations_audience_length check (length(audience) between 1 and 2048),
    constraint organizations_jwks_uri_length check (length(jwks_uri) between 1 and 2048),
    constraint organizations_org_claim_value_length check (length(org_claim_value) between 1 and 512),
    constraint organizations_identity_object check (jsonb_typeof(identity) = 'object'),
    constraint organizations_quota_object check (jsonb_typeof(quota) = 'object'),
    constraint organizations_deletion_policy_known check (deletion_policy in ('Retain', 'Delete')),
    constraint organizations_generation_positive check (generation >= 0)
);
-- A retained (deleted_at is set) organization must not block a new one of the same name or identity.
create unique index organizations_live_slug on organizations (slug) where deleted_at is null;
-- Two live organizations with one identity would be one token that opens two tenants.
create unique index organizations_live_identity on organizations (issuer, org_claim_value) where deleted_at is null;

-- ---------------------------------------------------------------------------------------------------------------
-- tenant_roles: the only place that says which organization a database role stands for.
create table tenant_roles (
    role_name  name primary key,
    org_id     uuid not null references organizations (id) on delete cascade,
    read_only  boolean not null default false,
    created_at timestamptz not null default now(),
    constraint tenant_roles_one_each unique (org_id, read_only),
    constraint tenant_roles_name_form check (role_name ~ '^org_[a-z0-9]([a-z0-9_]*[a-z0-9])?$'),
    -- Together with the slug rule above: no role name can mean two things.
    constraint tenant_roles_name_tells_read_only check (read_only = (role_name ~ '_ro$'))
);

-- The organization of this transaction, or NULL for whoever is nobody's tenant: NULL matches no row and passes no
-- WITH CHECK. Runs with the caller's rights; the policy on tenant_roles shows a role its own row only.
create function app.current_org() returns uuid
    language sql stable parallel safe
    begin atomic
        select r.org_id from public.tenant_roles r where r.role_name = current_user;
    end;

-- After a transaction that set it, a custom setting reads as '' and not as NULL: hence nullif.
create function app.user_id() returns uuid
    language sql stable parallel safe
    begin atomic
        select nullif(current_setting('app.user_id', true), '')::uuid;
    end;

create function app.is_admin() returns boolean
    language sql stable parallel safe
    begin atomic
        select coalesce(current_setting('app.user_role', true) = 'admin', false);
    end;

grant execute on function app.current_org(), app.user_id(), app.is_admin()
    to agentapi_operator, agentapi_runtime, agentapi_tenant, agentapi_tenant_ro;

create function app.touch_updated_at() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    new.updated_at := now();
    return new;
end $$;

create trigger organizations_touch before update on organizations
    for each row execute function app.touch_updated_at();

-- ---------------------------------------------------------------------------------------------------------------
alter table tenant_roles enable row level security;
alter table tenant_roles force row level security;
grant select, insert, update, delete on tenant_roles to agentapi_operator;
grant select on tenant_roles to agentapi_runtime, agentapi_tenant, agentapi_tenant_ro;
create policy tenant_roles_operator on tenant_roles to agentapi_operator using (true) with check (true);
create policy tenant_roles_own on tenant_roles for select to agentapi_tenant, agentapi_tenant_ro
    using (role_name = current_user);
-- Without a role the runtime needs the names that it may take on, and never a read-only login's.
create policy tenant_roles_runtime on tenant_roles for select to agentapi_runtime using (not read_only);

alter table organizations enable row level security;
alter table organizations force row level security;
grant select, insert, update, delete on organizations to agentapi_operator;
grant select on organizations to agentapi_tenant, agentapi_tenant_ro;
grant update (admission_lock) on organizations to agentapi_tenant;
grant select (id, slug, issuer, audience, jwks_uri, org_claim_value, identity, quota, deleted_at)
    on organizations to agentapi_runtime;
create policy organizations_operator on organizations to agentapi_operator using (true) with check (true);
create policy organizations_own on organizations for select to agentapi_tenant, agentapi_tenant_ro
    using (id = (select app.current_org()));
create policy organizations_lock on organizations for update to agentapi_tenant
    using (id = (select app.current_org())) with check (id = (select app.current_org()));
create policy organizations_identity on organizations for select to agentapi_runtime using (deleted_at is null);

-- What the runtime may know before it has a tenant: how to tell whose token this is, and which role to take on.
create view app.tenants with (security_invoker = true) as
    select o.id, o.slug, r.role_name, o.issuer, o.audience, o.jwks_uri, o.org_claim_value, o.identity, o.quota
    from public.organizations o
    join public.tenant_roles r on r.org_id = o.id and not r.read_only
    where o.deleted_at is null;
grant select on app.tenants to agentapi_runtime, agentapi_operator;

-- The organization of a token, from its issuer and the value of its organization claim. At most one row.
create function app.resolve_identity(token_issuer text, token_org text) returns setof app.tenants
    language sql stable
    begin atomic
        select t.* from app.tenants t where t.issuer = token_issuer and t.org_claim_value = token_org;
    end;
grant execute on function app.resolve_identity(text, text) to agentapi_runtime;

-- Serializes decisions that count rows of the whole organization (quotas) until the transaction ends. A row lock and
-- not an advisory lock: those are shared by the whole database, and any tenant could hold another's.
create function app.lock_organization() returns uuid
    language sql volatile
    begin atomic
        select o.id from public.organizations o where o.id = app.current_org() for no key update;
    end;
grant execute on function app.lock_organization() to agentapi_tenant;
