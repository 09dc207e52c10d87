//! What the attack suite attacks with: payloads, every place of the API that they fit into, bytes on a bare socket, and
//! the log in memory. May touch: sockets of the server under attack, this process's log.

pub mod log;
pub mod openapi;
pub mod payloads;
pub mod tokens;
pub mod wire;
