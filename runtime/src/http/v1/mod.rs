//! Version 1 of the public API, a file per endpoint or pair of them.

pub mod agent;
mod asleep;
pub mod audit;
pub mod create_session;
mod deed;
pub mod mcp;
pub mod oauth;
pub mod permissions;
pub mod prompts;
pub mod sessions;
mod transcript;
pub mod workspaces;
