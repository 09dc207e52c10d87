//! MCP servers for tests: a real one (FastMCP from PyPI), and one that does what no server should.

pub mod fastmcp;
pub mod raw;
pub mod setup;
