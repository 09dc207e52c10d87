-- An organization that leaves: no new sessions, the running ones end, then everything goes step by step, and a signed
-- receipt says what was done.

alter table organizations add column drain_until timestamptz;
comment on column organizations.drain_until is
    'Set: the organization is being deleted. No new sessions; those that run are ended at this time.';
grant select (drain_until) on organizations to agentapi_runtime;

create view app.draining with (security_invoker = true) as
    select o.id as org_id, o.drain_until from public.organizations o
    where o.drain_until is not null and o.deleted_at is null;
grant select on app.draining to agentapi_runtime;

-- Here and not in a handler: app.lock_organization() makes a new session wait for the transaction that starts to
-- drain, so none slips through between two replicas.
create function app.refuse_while_draining() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from public.organizations o where o.id = new.org_id and o.drain_until is not null) then
        raise object_not_in_prerequisite_state using
            message = 'the organization is being deleted and takes no new sessions',
            constraint = 'sessions_not_while_draining';
    end if;
    return new;
end $$;
create trigger sessions_not_while_draining before insert on sessions
    for each row execute function app.refuse_while_draining();

-- One row per organization that left, kept for good: how far it has come, and the receipt. No foreign key: the row
-- outlives its organization.
create table offboardings (
    org_id          uuid primary key,
    org_slug        text not null,
    deletion_policy text not null,
    requested_at    timestamptz not null,
    drain_until     timestamptz not null,
    -- step -> {"at": time, …what was done}
    steps           jsonb not null default '{}',
    -- JWS (RFC 7515) over all of the above.
    receipt         text,
    completed_at    timestamptz,
    -- The receipt is also where Kubernetes keeps it.
    published_at    timestamptz,
    constraint offboardings_org_slug_length check (length(org_slug) between 1 and 50),
    constraint offboardings_deletion_policy_known check (deletion_policy in ('Retain', 'Delete')),
    constraint offboardings_steps_object check (jsonb_typeof(steps) = 'object'),
    constraint offboardings_receipt_length check (length(receipt) between 1 and 65536),
    constraint offboardings_completed_with_receipt check ((receipt is null) = (completed_at is null))
);
create index offboardings_open on offboardings (requested_at) where published_at is null;

create function app.keep_receipt() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    changed public.offboardings := new;
begin
    changed.published_at := old.published_at;
    if old.receipt is not null and changed is distinct from old then
        raise insufficient_privilege using message = 'a receipt is final';
    end if;
    return new;
end $$;
create trigger offboardings_final before update on offboardings for each row execute function app.keep_receipt();
create trigger offboardings_kept before delete or truncate on offboardings
    for each statement execute function app.audit_refuse();

alter table offboardings enable row level security;
alter table offboardings force row level security;
grant select, insert, update on offboardings to agentapi_operator;
create policy offboardings_operator on offboardings to agentapi_operator using (true) with check (true);
create policy offboardings_keep on offboardings as restrictive for delete using (false);

-- The last rows of the chain come when the organization's own row may be gone.
create policy audit_log_offboarding on audit_log for insert to agentapi_operator
    with check (exists (select 1 from offboardings f
                        where f.org_id = audit_log.org_id and f.org_slug = audit_log.org_slug and f.receipt is null));

-- The receipt counts rows. One column each: how many, and nothing of what is in them.
grant select (org_id) on users, messages, oauth_states to agentapi_operator;
create policy users_count on users for select to agentapi_operator using (true);
create policy messages_count on messages for select to agentapi_operator using (true);
create policy oauth_states_count on oauth_states for select to agentapi_operator using (true);
-- Connections that came through the API are the operator's business only when their organization leaves.
create policy mcp_connections_count on mcp_connections for select to agentapi_operator
    using (exists (select 1 from organizations o where o.id = mcp_connections.org_id and o.drain_until is not null));
