//! Custom resources of the AgentAPI operator, group `agentapi.dev/v1alpha1`, and the names that
//! the operator and the runtime share. Data types only: no client, no async runtime.
pub mod common;
pub mod conditions;
pub mod isolation;
pub mod mcp_connection;
pub mod model;
pub mod names;
pub mod organization;
pub mod pod;
pub mod prompt_policy;
pub mod workspace;

pub use mcp_connection::McpConnection;
pub use organization::Organization;
pub use prompt_policy::PromptPolicy;
pub use workspace::Workspace;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// All our definitions, in the order in which people meet them.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![Organization::crd(), Workspace::crd(), McpConnection::crd(), PromptPolicy::crd()]
}
