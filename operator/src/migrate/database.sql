-- Rights on this database. Idempotent; run by the administrator who has taken on agentapi_owner.
do $$
begin
    -- PUBLIC may CONNECT and create temporary tables by default; a temporary table can shadow a real one.
    execute format('revoke all on database %I from public', current_database());
    execute format('grant connect on database %I to agentapi_operator, agentapi_runtime, agentapi_tenant_ro',
                   current_database());
end $$;
