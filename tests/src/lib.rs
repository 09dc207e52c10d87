//! Harness and tests against real parts: Postgres, API server, agents, OIDC.

pub mod fakemodel;
