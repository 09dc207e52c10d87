//! What the status of an Organization says about its isolation: one entry per probe. Data only.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the probes that try to cross into other tenants have found. When a probe ran last is a metric, so that nothing is
/// written here while nothing changes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Isolation {
    /// One entry per probe.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub probes: Vec<IsolationProbe>,
}

/// The last result of one probe.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct IsolationProbe {
    /// Name of the probe; docs/operations.md says what each one tries.
    pub name: String,
    /// Passed, Breached, or Unknown when it could not run.
    pub result: ProbeResult,
    /// What was found, or why it could not run.
    pub message: String,
    /// When the result changed.
    pub last_transition_time: Time,
}

/// Result of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum ProbeResult {
    /// It was refused everywhere.
    Passed,
    /// It came through somewhere, or a fence was not as it must be.
    Breached,
    /// It could not run; this never counts as passed.
    Unknown,
}

impl ProbeResult {
    /// The word in status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "Passed",
            Self::Breached => "Breached",
            Self::Unknown => "Unknown",
        }
    }
}
