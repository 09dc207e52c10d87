//! The operator: turns AgentAPI custom resources into namespaces, pods, Postgres roles and Secrets.
pub mod migrate;
pub mod scram;
