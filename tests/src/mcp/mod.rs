//! MCP servers for tests: a real one (FastMCP from PyPI), one that does what no server should, and an old one that
//! answers no call.

pub mod fastmcp;
pub mod old;
pub mod raw;
pub mod setup;
