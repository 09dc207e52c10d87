//! Harness and tests against real parts: Postgres, API server, agents, OIDC.

pub mod agents;
pub mod api;
pub mod attack;
pub mod chaos;
pub mod chart;
pub mod cluster;
pub mod connections;
pub mod fakemodel;
pub mod mcp;
pub mod models;
pub mod oauth;
pub mod pg;
pub mod ports;
pub mod serve;
pub mod stage;
pub mod talk;
pub mod tenant;
