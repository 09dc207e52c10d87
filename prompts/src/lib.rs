//! What an agent is told before its user speaks: prompt policies composed into one system prompt, and text from
//! outside screened for injections. Pure: no client, no clock, no network.

pub mod cache;
pub mod compose;
pub mod facts;
#[cfg(test)]
mod fuzz;
pub mod policy;
pub mod screen;
pub mod template;

pub use cache::{Cache, Generations};
pub use compose::{Composed, compose};
pub use facts::{Facts, MAX_TOOLS};
pub use policy::{Mode, Policy, Scope};
pub use screen::{Family, Finding, printable, redact, screen};
