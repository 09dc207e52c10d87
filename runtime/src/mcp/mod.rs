//! Servers of the Model Context Protocol: the connections that an organization has, how they are authenticated to, and
//! the only client that talks to them. Tokens for them never leave this process.
//!
//! May touch: Postgres through `store`, the servers through `outbound`, one named Secret at a time. Imports nothing of
//! `http`.

pub mod cancellations;
pub mod client;
pub mod connection;
pub mod credentials;
pub mod error;
#[cfg(test)]
mod fuzz;
pub mod guards;
pub mod legacy;
pub mod policy;
pub mod prober;
pub mod protocol;
pub mod rpc;
pub mod secrets;
pub mod service;
pub mod sse;
pub mod tools;
pub mod upstream;
