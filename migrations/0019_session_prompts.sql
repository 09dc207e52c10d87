-- What a session was told when it began, and how its user's messages are looked at. Both are decided once: an edited
-- policy is for new sessions. Sessions from before this have neither.
alter table sessions add column prompt_digest text;
alter table sessions add column prompt_screening text;
alter table sessions add constraint sessions_prompt_digest_form check (prompt_digest ~ '^sha256:[0-9a-f]{64}$');
alter table sessions add constraint sessions_prompt_screening_known
    check (prompt_screening in ('Detect', 'Redact', 'Reject'));

create function app.keep_prompt() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    raise insufficient_privilege using message = 'what a session was told does not change after its start';
end $$;
create trigger sessions_prompt_kept before update on sessions for each row
    when ((old.prompt_digest, old.prompt_screening) is distinct from (new.prompt_digest, new.prompt_screening))
    execute function app.keep_prompt();
