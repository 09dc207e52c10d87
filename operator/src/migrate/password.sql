-- Sets a password from a verifier (`scram`), so that neither statement nor server log ever holds the password.
do $$
begin
    execute format('alter role %I password %L', current_setting('agentapi.role'), current_setting('agentapi.verifier'));
end $$;
