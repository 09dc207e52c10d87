-- What servers say about themselves is theirs to choose: a row of it has a size all the same. The runtime leaves out
-- what is longer; these hold for whoever else writes. Rows of before stay as they are until they are written again.
alter table mcp_observations
    add constraint mcp_observations_tools_size
        check (jsonb_array_length(tools) <= 2000 and octet_length(tools::text) <= 2097152) not valid,
    add constraint mcp_observations_pinned_size
        check (jsonb_array_length(pinned) <= 2000 and octet_length(pinned::text) <= 2097152) not valid;
