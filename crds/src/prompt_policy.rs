//! `PromptPolicy`: a part of the system prompt, for everybody, an organization or a workspace.
use crate::common::{Condition, OrganizationRef, WorkspaceRef};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Desired state of a PromptPolicy.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "agentapi.dev",
    version = "v1alpha1",
    kind = "PromptPolicy",
    plural = "promptpolicies",
    namespaced,
    shortname = "pp",
    category = "agentapi",
    status = "PromptPolicyStatus",
    derive = "PartialEq",
    doc = "PromptPolicy is a part of the system prompt that agents get: for everybody (Global), for an Organization or for a Workspace.",
    printcolumn(name = "Scope", type_ = "string", json_path = ".spec.scope"),
    printcolumn(name = "Organization", type_ = "string", json_path = ".spec.organizationRef.name"),
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority"),
    printcolumn(name = "Locked", type_ = "boolean", json_path = ".spec.locked"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = "1"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.injection.mode", priority = "1"),
    printcolumn(name = "Lines", type_ = "integer", json_path = ".status.effective.lines", priority = "1"),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.effective.bytes", priority = "1"),
    printcolumn(name = "Generation", type_ = "integer", json_path = ".status.activeGeneration", priority = "1"),
    printcolumn(name = "Shadowed by", type_ = "string", json_path = ".status.effective.shadowedBy", priority = "1"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.effective.digest", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("self.metadata.name.matches('^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$')", "a PromptPolicy's name is 1 to 63 characters of a-z, 0-9 and -, starting with a letter, for example house-rules")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.scope != 'Global' || (!has(self.organizationRef) && !has(self.workspaceRef))", "a policy of scope Global has neither organizationRef nor workspaceRef"))]
#[x_kube(validation = ("self.scope != 'Organization' || (has(self.organizationRef) && !has(self.workspaceRef))", "a policy of scope Organization needs organizationRef and no workspaceRef"))]
#[x_kube(validation = ("self.scope != 'Workspace' || (has(self.organizationRef) && has(self.workspaceRef))", "a policy of scope Workspace needs organizationRef and workspaceRef"))]
pub struct PromptPolicySpec {
    /// Whose prompts the policy is part of; it can't be changed. Global works only in the operator's own namespace.
    #[x_kube(validation = ("self == oldSelf", "scope can't be changed; make a new PromptPolicy instead"))]
    pub scope: Scope,
    /// The Organization, for the scopes Organization and Workspace; it can't be changed.
    #[x_kube(validation = ("self == oldSelf", "organizationRef can't be changed; make a new PromptPolicy instead"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization_ref: Option<OrganizationRef>,
    /// The Workspace, for the scope Workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_ref: Option<WorkspaceRef>,
    /// Order within the scope; the higher comes first.
    #[serde(default)]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: i32,
    /// No lower scope can override this policy.
    #[serde(default)]
    pub locked: bool,
    /// The text, a minijinja template.
    #[schemars(length(min = 1, max = 65536))]
    pub template: String,
    /// Variables of the template, each of up to 2048 characters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = { "type": "string", "maxLength": 2048 }))]
    pub variables: BTreeMap<String, String>,
    /// What to do about prompt injection in untrusted text.
    #[serde(default)]
    pub injection: Injection,
}

/// Whose prompts a policy is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Scope {
    /// Everybody's.
    Global,
    /// One organization's.
    Organization,
    /// One workspace's.
    Workspace,
}

impl Scope {
    /// The name of the scope in Postgres and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Global => "Global",
            Self::Organization => "Organization",
            Self::Workspace => "Workspace",
        }
    }
}

/// What to do about prompt injection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Injection {
    /// Detect, Redact or Reject.
    #[serde(default)]
    pub mode: InjectionMode,
}

/// What happens to text that looks like prompt injection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum InjectionMode {
    /// It is reported.
    #[default]
    Detect,
    /// It is reported and cut out.
    Redact,
    /// The request is refused.
    Reject,
}

/// Observed state of a PromptPolicy.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromptPolicyStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Generation of the spec whose template is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_generation: Option<i64>,
    /// What the policy adds to a session's prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Effective>,
    /// Accepted, Ready.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What a policy adds to a session's prompt. The session's own values are examples.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Effective {
    /// Lines of its text.
    pub lines: i64,
    /// Bytes of its text.
    pub bytes: i64,
    /// `sha256:<hex>` of its text.
    pub digest: String,
    /// The locked policy of a higher scope that has this policy's name: no session gets this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadowed_by: Option<String>,
}
