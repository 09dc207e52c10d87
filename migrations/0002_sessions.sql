-- Users, workspaces, sessions and their transcripts.
--
-- Keys start with org_id: the primary key is the index that the policies need, a foreign key can't cross
-- organizations, and a duplicate key error can't tell one tenant that another has the same id.

create table users (
    org_id     uuid not null references organizations (id) on delete cascade,
    id         uuid not null,
    subject    text not null,
    email      text,
    role       text not null default 'user',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (org_id, id),
    constraint users_subject_once unique (org_id, subject),
    constraint users_subject_length check (length(subject) between 1 and 512),
    constraint users_email_length check (length(email) between 1 and 512),
    constraint users_role_known check (role in ('admin', 'user'))
);

-- id is metadata.uid of the Workspace. A deleted workspace keeps its row (deleted_at) for the sessions it had.
create table workspaces (
    org_id        uuid not null references organizations (id) on delete cascade,
    id            uuid not null,
    name          text not null,
    k8s_namespace text not null,
    agent_type    text not null,
    max_sessions  integer not null,
    spec          jsonb not null default '{}',
    generation    bigint not null default 0,
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now(),
    deleted_at    timestamptz,
    primary key (org_id, id),
    constraint workspaces_name_length check (length(name) between 1 and 253),
    constraint workspaces_k8s_namespace_length check (length(k8s_namespace) between 1 and 63),
    constraint workspaces_agent_type_length check (length(agent_type) between 1 and 63),
    constraint workspaces_max_sessions_range check (max_sessions between 0 and 100000),
    constraint workspaces_spec_object check (jsonb_typeof(spec) = 'object'),
    constraint workspaces_generation_positive check (generation >= 0)
);
create unique index workspaces_live_name on workspaces (org_id, name) where deleted_at is null;

create table sessions (
    org_id           uuid not null references organizations (id) on delete cascade,
    id               uuid not null,
    workspace_id     uuid not null,
    user_id          uuid not null,
    phase            text not null default 'Pending',
    pod_name         text,
    pod_ip           text,
    agent_type       text not null,
    agent_status     text,
    idempotency_key  text,
    request_hash     text,
    error            text,
    created_at       timestamptz not null default now(),
    updated_at       timestamptz not null default now(),
    last_activity_at timestamptz not null default now(),
    ended_at         timestamptz,
    primary key (org_id, id),
    -- For the foreign key of messages, which copy the owner to keep their policy free of a subquery per row.
    constraint sessions_owner unique (org_id, id, user_id),
    -- Per user: another user's key must be neither found nor in the way.
    constraint sessions_idempotency unique (org_id, user_id, idempotency_key),
    constraint sessions_workspace foreign key (org_id, workspace_id) references workspaces (org_id, id),
    constraint sessions_user foreign key (org_id, user_id) references users (org_id, id),
    constraint sessions_phase_known
        check (phase in ('Pending', 'Starting', 'Running', 'Terminating', 'Ended', 'Failed')),
    constraint sessions_ended_at_tells_phase check ((ended_at is not null) = (phase in ('Ended', 'Failed'))),
    constraint sessions_pod_name_length check (length(pod_name) between 1 and 253),
    constraint sessions_pod_ip_length check (length(pod_ip) between 1 and 64),
    constraint sessions_agent_type_length check (length(agent_type) between 1 and 63),
    constraint sessions_agent_status_known check (agent_status in ('running', 'stable')),
    constraint sessions_idempotency_key_length check (length(idempotency_key) between 1 and 255),
    constraint sessions_request_hash_length check (length(request_hash) between 1 and 128),
    constraint sessions_error_length check (length(error) <= 4096)
);
-- The list of a user's sessions, newest first (ids are UUIDv7; for admins the primary key serves), and the counts of
-- quotas and the loop that looks after unfinished sessions.
create index sessions_by_user on sessions (org_id, user_id, id desc);
create index sessions_live on sessions (org_id, workspace_id) where ended_at is null;

create table messages (
    org_id     uuid not null references organizations (id) on delete cascade,
    session_id uuid not null,
    id         integer not null,
    user_id    uuid not null,
    role       text not null,
    content    text not null,
    time       timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (org_id, session_id, id),
    constraint messages_session foreign key (org_id, session_id, user_id)
        references sessions (org_id, id, user_id) on delete cascade,
    constraint messages_id_positive check (id >= 0),
    constraint messages_role_known check (role in ('agent', 'user')),
    constraint messages_content_length check (octet_length(content) <= 16777216)
);

-- The owner of a message is the owner of its session. The caller's rights decide whether the session is seen; the
-- foreign key refuses what does not fit.
create function app.message_owner() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if new.user_id is null then
        select s.user_id into new.user_id from public.sessions s
        where s.org_id = new.org_id and s.id = new.session_id;
    end if;
    return new;
end $$;
create trigger messages_owner before insert on messages for each row execute function app.message_owner();

create trigger users_touch before update on users for each row execute function app.touch_updated_at();
create trigger workspaces_touch before update on workspaces for each row execute function app.touch_updated_at();
create trigger sessions_touch before update on sessions for each row execute function app.touch_updated_at();
create trigger messages_touch before update on messages for each row execute function app.touch_updated_at();

-- users: the runtime adds people on their first token, in a transaction with app.user_role 'admin'. Nobody raises
-- their own role: a user sees only their own row and changes none.
alter table users enable row level security;
alter table users force row level security;
grant select, insert, update on users to agentapi_tenant;
grant select on users to agentapi_tenant_ro;
create policy users_read on users for select to agentapi_tenant
    using (org_id = (select app.current_org()) and (id = (select app.user_id()) or (select app.is_admin())));
create policy users_add on users for insert to agentapi_tenant
    with check (org_id = (select app.current_org()) and (select app.is_admin()));
create policy users_change on users for update to agentapi_tenant
    using (org_id = (select app.current_org()) and (select app.is_admin()))
    with check (org_id = (select app.current_org()) and (select app.is_admin()));
create policy users_ro on users for select to agentapi_tenant_ro using (org_id = (select app.current_org()));
-- People leave with their organization (foreign key) and not before: their sessions and audit rows name them.
create policy users_keep on users as restrictive for delete using (false);

-- workspaces: written by the operator from Workspace resources; tenants read.
alter table workspaces enable row level security;
alter table workspaces force row level security;
grant select, insert, update, delete on workspaces to agentapi_operator;
grant select on workspaces to agentapi_tenant, agentapi_tenant_ro;
create policy workspaces_operator on workspaces to agentapi_operator using (true) with check (true);
create policy workspaces_read on workspaces for select to agentapi_tenant, agentapi_tenant_ro
    using (org_id = (select app.current_org()));

-- sessions: each user's own; an admin's, all of the organization. Rows end (phase), they are not deleted.
alter table sessions enable row level security;
alter table sessions force row level security;
grant select, insert, update on sessions to agentapi_tenant;
grant select on sessions to agentapi_tenant_ro;
-- Usage in status: counts, no content.
grant select (org_id, id, workspace_id, phase, created_at, ended_at) on sessions to agentapi_operator;
create policy sessions_read on sessions for select to agentapi_tenant
    using (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())));
create policy sessions_add on sessions for insert to agentapi_tenant
    with check (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())));
create policy sessions_change on sessions for update to agentapi_tenant
    using (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())))
    with check (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())));
create policy sessions_ro on sessions for select to agentapi_tenant_ro using (org_id = (select app.current_org()));
create policy sessions_usage on sessions for select to agentapi_operator using (true);
create policy sessions_keep on sessions as restrictive for delete using (false);

-- messages: those of the sessions above. Deleting is for a transcript that the pod cut short.
alter table messages enable row level security;
alter table messages force row level security;
grant select, insert, update, delete on messages to agentapi_tenant;
grant select on messages to agentapi_tenant_ro;
create policy messages_own on messages to agentapi_tenant
    using (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())))
    with check (org_id = (select app.current_org()) and (user_id = (select app.user_id()) or (select app.is_admin())));
create policy messages_ro on messages for select to agentapi_tenant_ro using (org_id = (select app.current_org()));
