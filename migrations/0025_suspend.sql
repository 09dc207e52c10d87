-- A suspended session has no pod and keeps what it holds; it is not over, and the next request for it wakes it.
alter table sessions add column suspended_at timestamptz;
comment on column sessions.suspended_at is
    'Set from the time that the session was suspended until it runs again: a Starting session with it is being woken.';
alter table sessions drop constraint sessions_phase_known;
alter table sessions add constraint sessions_phase_known check (
    phase in ('Pending', 'Starting', 'Running', 'Suspending', 'Suspended', 'Terminating', 'Ended', 'Failed'));
alter table sessions add constraint sessions_suspended_at_tells_phase
    check (phase <> 'Suspended' or suspended_at is not null);

-- As for new ones (0013).
create trigger sessions_not_woken_while_draining before update on sessions for each row
    when (old.phase = 'Suspended' and new.phase = 'Starting')
    execute function app.refuse_while_draining();
