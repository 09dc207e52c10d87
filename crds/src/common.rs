//! Small types that several of our custom resources share. Data only.
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};

/// The Organization that an object belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrganizationRef {
    /// `metadata.name` of the Organization.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
}

/// A Workspace in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceRef {
    /// `metadata.name` of the Workspace.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
}

/// One key of a Secret in the organization's tenant namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret in the tenant namespace (`agentapi-<organization>`).
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = ("!self.startsWith('agentapi-') && !self.endsWith('-session')", "Secrets that start with agentapi- or end in -session belong to the operator and to sessions; put the credential into a Secret of your own"))]
    pub name: String,
    /// Key in the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// One environment variable with a plain value. Secrets belong into `secretRefs`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Name of the variable.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = ("self.matches('^[A-Za-z_][A-Za-z0-9_]*$')", "env names use letters, digits and _ and do not start with a digit, for example HTTP_TIMEOUT"))]
    #[x_kube(validation = ("!self.startsWith('AGENTAPI_')", "env names that start with AGENTAPI_ are set by the operator; choose another name"))]
    pub name: String,
    /// Value of the variable.
    #[schemars(length(max = 4096))]
    pub value: String,
}

/// What deleting the object does to its rows in Postgres.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum DeletionPolicy {
    /// Rows stay (marked as deleted, unreachable through the API) for an auditor.
    #[default]
    Retain,
    /// Rows are deleted; the audit log stays.
    Delete,
}
