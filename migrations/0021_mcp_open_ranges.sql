-- Private ranges that the runtime connects to for an organization (Organization.spec.mcp.allowPrivateRanges).
alter table organizations
    add column mcp_open_ranges text[] not null default '{}',
    add constraint organizations_mcp_open_ranges_count check (cardinality(mcp_open_ranges) <= 32);
grant select (mcp_open_ranges) on organizations to agentapi_runtime;
