//! `Organization`: the tenant. Cluster-scoped, since it owns a namespace.
use crate::common::{Condition, DeletionPolicy, LabelSelector};
use crate::{isolation::Isolation, workspace::EgressRule};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Desired state of an Organization.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "agentapi.dev",
    version = "v1alpha1",
    kind = "Organization",
    plural = "organizations",
    shortname = "org",
    category = "agentapi",
    status = "OrganizationStatus",
    derive = "PartialEq",
    doc = "Organization is a tenant of the AgentAPI: a namespace for its session pods, Postgres roles under forced row-level security, and its secrets.",
    printcolumn(name = "Display", type_ = "string", json_path = ".spec.displayName"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".status.namespace"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Isolated", type_ = "string", json_path = ".status.conditions[?(@.type==\"IsolationVerified\")].status"),
    printcolumn(name = "Sessions", type_ = "integer", json_path = ".status.usage.sessions"),
    printcolumn(name = "CPU", type_ = "string", json_path = ".status.usage.cpu", priority = "1"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.usage.memory", priority = "1"),
    printcolumn(name = "Workspaces", type_ = "integer", json_path = ".status.usage.workspaces", priority = "1"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("self.metadata.name.matches('^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$')", "an Organization's name is 1 to 40 characters of a-z, 0-9 and -, starting with a letter, for example acme; it becomes part of a namespace and of a Postgres role"),
    validation = ("self.metadata.name != 'system' && self.metadata.name != 'demo'", "the names system and demo are taken by the operator's own namespaces; choose another name"),
    validation = ("!self.metadata.name.endsWith('-ro')", "an Organization's name can't end in -ro, since that ending marks read-only database roles; choose another name")
)]
#[serde(rename_all = "camelCase")]
pub struct OrganizationSpec {
    /// Name that people read.
    #[schemars(length(min = 1, max = 128))]
    pub display_name: String,

    /// Namespaces whose Workspaces, McpConnections and PromptPolicies may refer to this Organization. Empty: none may.
    #[serde(default)]
    pub allowed_namespaces: AllowedNamespaces,

    /// How the organization's people and programs prove who they are.
    pub identity: Identity,

    /// Upper limits for all workspaces together; enforced by the API and by a ResourceQuota.
    #[serde(default)]
    pub quota: Quota,

    /// What the Organization's Workspaces may reach; a Workspace's `egress` is cut down to this. Left out: any address outside of
    /// the cluster, and no namespace. An empty list: nothing. Addresses of pods, Services, nodes and link-local ones are never open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub allowed_egress: Option<Vec<EgressRule>>,

    /// What the organization's connections to MCP servers may reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp: Option<McpSettings>,

    /// When this Organization is deleted: seconds for which its sessions may go on, while new ones are refused.
    #[serde(default = "default_drain")]
    #[schemars(range(min = 0, max = 86400))]
    pub drain_grace_period_seconds: u32,

    /// What deleting this Organization does to its rows in Postgres. The namespace is always deleted and the audit log always stays.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// Settings of the Model Context Protocol for an Organization.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct McpSettings {
    /// Private ranges of addresses whose MCP servers and OAuth providers the runtime connects to for this Organization.
    /// Left out: public addresses only. Metadata services stay closed, whatever is opened here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 64)))]
    #[x_kube(validation = ("self.all(range, isCIDR(range))", "allowPrivateRanges are ranges of IP addresses, for example 10.20.0.0/16"))]
    #[x_kube(validation = ("self.all(range, !isCIDR(range) || !['127.0.0.0/8', '169.254.0.0/16', '::1/128', 'fe80::/10'].exists(closed, cidr(closed).containsCIDR(range) || cidr(range).containsCIDR(closed)))", "allowPrivateRanges can't open loopback and link-local addresses: they are the runtime's own and those of metadata services"))]
    pub allow_private_ranges: Vec<String>,
}

/// Who may refer to an Organization; a namespace is admitted when its name is listed or its labels match.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AllowedNamespaces {
    /// Names of namespaces.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    pub names: Vec<String>,
    /// Selector over labels of namespaces. An empty selector (`{}`) admits every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// The OpenID Connect provider that issues the organization's access tokens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!(has(self.jwksUri) && has(self.discovery) && self.discovery)", "write either jwksUri or discovery: true, not both"))]
pub struct Identity {
    /// Issuer: the exact `iss` of the tokens (RFC 7519), for example `https://login.example.com`.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = ("self.matches('^https?://[^ ]+$')", "issuer is the provider's URL, exactly as in the iss claim, for example https://login.example.com"))]
    pub issuer: String,
    /// The `aud` that tokens must carry.
    #[schemars(length(min = 1, max = 256))]
    pub audience: String,
    /// Where the provider publishes its keys (RFC 7517). Left out: found by OpenID Connect discovery at the issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = ("self.matches('^https?://[^ ]+$')", "jwksUri is an http or https URL, for example https://login.example.com/.well-known/jwks.json"))]
    pub jwks_uri: Option<String>,
    /// Find `jwksUri` by OpenID Connect discovery; this is also what happens when neither is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery: Option<bool>,
    /// Value of the tokens' `org_id` claim that stands for this Organization. Left out: the Organization's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub org_claim: Option<String>,
}

/// Upper limits of an Organization.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// Workspaces.
    #[serde(default = "default_workspaces")]
    #[schemars(range(min = 0, max = 1000))]
    pub workspaces: i32,
    /// Sessions at the same time, over all workspaces.
    #[serde(default = "default_sessions")]
    #[schemars(range(min = 0, max = 10000))]
    pub sessions: i32,
    /// Programs of stdio McpConnections at the same time.
    #[serde(default = "default_mcp_servers")]
    #[schemars(range(min = 0, max = 100))]
    pub mcp_servers: i32,
    /// PromptPolicies of the organization and its workspaces.
    #[serde(default = "default_prompt_policies")]
    #[schemars(range(min = 0, max = 500))]
    pub prompt_policies: i32,
    /// CPU limit of all session pods together.
    #[serde(default = "default_cpu")]
    #[x_kube(validation = ("isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('0'))", "cpu is a quantity that is not negative, for example 8"))]
    pub cpu: Quantity,
    /// Memory limit of all session pods together.
    #[serde(default = "default_memory")]
    #[x_kube(validation = ("isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('0'))", "memory is a quantity that is not negative, for example 16Gi"))]
    pub memory: Quantity,
    /// Storage of all volumes together.
    #[serde(default = "default_storage")]
    #[x_kube(validation = ("isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('0'))", "storage is a quantity that is not negative, for example 16Gi"))]
    pub storage: Quantity,
    /// Requests per second of all users together. Left out: the platform's default (Helm value `runtime.limits`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub requests_per_second: Option<i32>,
    /// Requests that are let in at once after a pause. Left out: two seconds' worth of `requestsPerSecond`, or the platform's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<i32>,
    /// The same for each user, so that one can't use up what is there for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_user: Option<RequestRate>,
}

/// How many requests are let in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestRate {
    /// Requests per second. Left out: the platform's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub requests_per_second: Option<i32>,
    /// Requests that are let in at once after a pause. Left out: two seconds' worth of `requestsPerSecond`, or the platform's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<i32>,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            workspaces: default_workspaces(),
            sessions: default_sessions(),
            mcp_servers: default_mcp_servers(),
            prompt_policies: default_prompt_policies(),
            cpu: default_cpu(),
            memory: default_memory(),
            storage: default_storage(),
            requests_per_second: None,
            burst: None,
            per_user: None,
        }
    }
}

fn default_drain() -> u32 {
    30
}
fn default_workspaces() -> i32 {
    10
}
fn default_sessions() -> i32 {
    20
}
fn default_mcp_servers() -> i32 {
    5
}
fn default_prompt_policies() -> i32 {
    50
}
fn default_cpu() -> Quantity {
    Quantity("20".into())
}
fn default_memory() -> Quantity {
    Quantity("40Gi".into())
}
fn default_storage() -> Quantity {
    Quantity("100Gi".into())
}

/// Observed state of an Organization.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrganizationStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Namespace of the organization's session pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Id of the organization in Postgres and in the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization_id: Option<String>,
    /// What is in use now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What the isolation probes have found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Ready, NamespaceReady, DatabaseReady, IsolationVerified.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What an Organization uses now.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Workspaces.
    pub workspaces: i32,
    /// Sessions that have not ended.
    pub sessions: i32,
    /// CPU limits of all pods together, warm ones too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory limits of all pods together, warm ones too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Storage of all volumes together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Quantity>,
}

impl Organization {
    /// Value of the `org_id` claim that stands for this Organization.
    pub fn org_claim(&self) -> &str {
        self.spec.identity.org_claim.as_deref().or(self.metadata.name.as_deref()).unwrap_or_default()
    }
}
