//! The contract of a session pod, on the real binary with a small real agent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod acp;
mod conversation;
mod lifecycle;
mod mcp;
mod support;
