//! Small types that several of our custom resources share. Data only.
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};

/// A duration as the resources' validation lets it in: `1h30m`, `45s`.
pub fn parse_duration(text: &str) -> Option<std::time::Duration> {
    let mut seconds = 0_u64;
    let mut number = String::new();
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => return None,
        };
        seconds = seconds.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        number.clear();
    }
    (number.is_empty() && !text.is_empty()).then_some(std::time::Duration::from_secs(seconds))
}

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

#[cfg(test)]
mod tests {
    use super::parse_duration;
    use std::time::Duration;

    #[test]
    fn durations_are_parsed_as_the_resources_have_them() {
        assert_eq!(parse_duration("30m"), Some(Duration::from_secs(1800)));
        assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_duration("45s"), Some(Duration::from_secs(45)));
        for bad in ["", "10", "m", "1d", "5m3"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
