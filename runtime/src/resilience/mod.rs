//! What keeps one failing or slow server from hurting anybody else. Imports nothing of ours. May touch: memory.

pub mod breaker;
pub mod bulkhead;
pub mod memory;
