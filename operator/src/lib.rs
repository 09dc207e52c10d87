//! The operator: turns AgentAPI custom resources into namespaces, pods, Postgres roles and Secrets.
//!
//! A reconcile is five steps: dereference (reads), validate, build (both pure), apply, status.
//! Only [`apply`] writes to the cluster and only [`tenancy`] and [`records`] write to Postgres.
pub mod apply;
pub mod audit;
pub mod checkpoints;
pub mod config;
pub mod context;
pub mod controllers;
pub mod drift;
pub mod egress;
pub mod envelope;
pub mod error;
#[cfg(test)]
mod fuzz;
pub mod health;
pub mod isolation;
pub mod keys;
pub mod lease;
pub mod metrics;
pub mod migrate;
pub mod observations;
pub mod quantity;
pub mod readable;
pub mod receipt;
pub mod records;
pub mod run;
pub mod scram;
pub mod shutdown;
pub mod signing;
pub mod status;
pub mod system;
pub mod telemetry;
pub mod tenancy;
pub mod ticks;
pub mod usage;
