//! `Workspace`: which agent an organization's sessions run, with which limits.
use crate::common::{Condition, EnvVar, OrganizationRef};
use crate::model::Model;
use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Desired state of a Workspace.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "agentapi.dev",
    version = "v1alpha1",
    kind = "Workspace",
    plural = "workspaces",
    namespaced,
    shortname = "agentws",
    category = "agentapi",
    status = "WorkspaceStatus",
    derive = "PartialEq",
    doc = "Workspace says which coding agent an Organization's sessions run, in which image, with which limits and network access.",
    printcolumn(name = "Organization", type_ = "string", json_path = ".spec.organizationRef.name"),
    printcolumn(name = "Agent", type_ = "string", json_path = ".spec.agent.type"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Warm", type_ = "integer", json_path = ".status.warmPods"),
    printcolumn(name = "Sessions", type_ = "integer", json_path = ".status.sessions"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("self.metadata.name.matches('^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$')", "a Workspace's name is 1 to 40 characters of a-z, 0-9 and -, starting with a letter, for example web")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.suspend) || !has(self.idleTimeout) || duration(self.suspend.idleAfter) < duration(self.idleTimeout)", "suspend.idleAfter must be shorter than idleTimeout: a session is suspended first and ends later"))]
#[x_kube(validation = ("self.warmPool <= self.maxSessions", "warmPool can't be larger than maxSessions; lower warmPool or raise maxSessions"))]
pub struct WorkspaceSpec {
    /// The Organization that this Workspace belongs to; it can't be changed.
    #[x_kube(validation = ("self == oldSelf", "organizationRef can't be changed; make a new Workspace instead"))]
    pub organization_ref: OrganizationRef,

    /// The agent that sessions run.
    pub agent: Agent,

    /// Sessions at the same time in this workspace.
    #[serde(default = "default_max_sessions")]
    #[schemars(range(min = 0, max = 1000))]
    pub max_sessions: i32,

    /// A session without a request for this long ends, for example `30m`. Left out: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = ("self.matches('^([0-9]+(s|m|h))+$') && duration(self) >= duration('10s')", "idleTimeout is a duration of at least 10s, written like 30m or 1h30m"))]
    pub idle_timeout: Option<String>,

    /// Give up the pods of sessions that nobody uses and keep what these hold, until somebody uses them again. Left out: a
    /// session has its pod until it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<Suspend>,

    /// A session older than this ends, for example `8h`. Left out: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = ("self.matches('^([0-9]+(s|m|h))+$') && duration(self) >= duration('1m')", "ttl is a duration of at least 1m, written like 8h or 90m"))]
    pub ttl: Option<String>,

    /// Pods that are kept ready for the next session.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub warm_pool: i32,

    /// Requests and limits of a session's agent container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("!has(self.limits) || !('cpu' in self.limits) || (isQuantity(string(self.limits['cpu'])) && !quantity(string(self.limits['cpu'])).isLessThan(quantity('0')))", "resources.limits: cpu is a quantity that is not negative, for example 500m"))]
    #[x_kube(validation = ("!has(self.limits) || !('memory' in self.limits) || (isQuantity(string(self.limits['memory'])) && !quantity(string(self.limits['memory'])).isLessThan(quantity('0')))", "resources.limits: memory is a quantity that is not negative, for example 1Gi"))]
    #[x_kube(validation = ("!has(self.limits) || !('ephemeral-storage' in self.limits) || (isQuantity(string(self.limits['ephemeral-storage'])) && !quantity(string(self.limits['ephemeral-storage'])).isLessThan(quantity('0')))", "resources.limits: ephemeral-storage is a quantity that is not negative, for example 2Gi"))]
    #[x_kube(validation = ("!has(self.requests) || !('cpu' in self.requests) || (isQuantity(string(self.requests['cpu'])) && !quantity(string(self.requests['cpu'])).isLessThan(quantity('0')))", "resources.requests: cpu is a quantity that is not negative, for example 500m"))]
    #[x_kube(validation = ("!has(self.requests) || !('memory' in self.requests) || (isQuantity(string(self.requests['memory'])) && !quantity(string(self.requests['memory'])).isLessThan(quantity('0')))", "resources.requests: memory is a quantity that is not negative, for example 1Gi"))]
    #[x_kube(validation = ("!has(self.requests) || !('ephemeral-storage' in self.requests) || (isQuantity(string(self.requests['ephemeral-storage'])) && !quantity(string(self.requests['ephemeral-storage'])).isLessThan(quantity('0')))", "resources.requests: ephemeral-storage is a quantity that is not negative, for example 2Gi"))]
    pub resources: Option<ResourceRequirements>,

    /// One volume for the working folders of all sessions of this Workspace: its users see each other's files there. Left
    /// out: each session has a folder of its own that lives as long as its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,

    /// What the agent may connect to besides DNS and the AgentAPI itself, as far as the Organization's `allowedEgress` goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub egress: Vec<EgressRule>,

    /// RuntimeClass of session pods, for example a sandbox such as gVisor or Kata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
}

fn default_max_sessions() -> i32 {
    5
}

/// The agent that a Workspace's sessions run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.transport != 'Acp' || self.type in ['Claude', 'Codex', 'Droid'] || has(self.command)", "how this type of agent is started to speak ACP is not known; give agent.command, for example command: [\"gemini\", \"--acp\"], or use transport: Pty"))]
#[x_kube(validation = ("self.type != 'Custom' || has(self.command)", "an agent of type Custom needs a command, for example command: [\"my-agent\", \"--tui\"]"))]
#[x_kube(validation = ("!has(self.model) || self.model.provider != 'Anthropic' || self.type in ['Claude', 'Droid', 'Custom']", "model.provider Anthropic works with agents of type Claude, Droid and Custom; use OpenAICompatible for Codex, and env and secretRefs for the others"))]
#[x_kube(validation = ("!has(self.model) || self.model.provider != 'Vertex' || self.type in ['Claude', 'Custom']", "model.provider Vertex works with agents of type Claude and Custom; use Router with an upstream of type VertexGemini for Droid, and env and secretRefs for the others"))]
#[x_kube(validation = ("!has(self.model) || self.model.provider != 'OpenAICompatible' || self.type in ['Codex', 'Custom']", "model.provider OpenAICompatible works with agents of type Codex and Custom; use Router for Claude and Droid, which speak Anthropic's API only"))]
#[x_kube(validation = ("!has(self.model) || self.model.provider != 'Router' || self.type in ['Claude', 'Droid', 'Custom']", "model.provider Router works with agents of type Claude, Droid and Custom, which speak Anthropic's API; use OpenAICompatible for Codex"))]
pub struct Agent {
    /// Which agent; it decides how the terminal is read and how the agent is set up.
    #[serde(rename = "type")]
    pub r#type: AgentType,
    /// Image with the agent and the `agentapi-runtime` binary.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// Command of the agent. Left out: the agent type's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(max = 4096)))]
    pub command: Option<Vec<String>>,
    /// Plain environment of the agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub env: Vec<EnvVar>,
    /// Secrets in the tenant namespace whose keys become environment of the agent, such as a model's API key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = ("self.all(s, !s.startsWith('agentapi-'))", "Secrets whose name starts with agentapi- belong to the operator; put the agent's credentials into a Secret of your own"))]
    #[x_kube(validation = ("self.all(s, !s.endsWith('-session'))", "Secrets whose name ends in -session hold the sessions of others; put the agent's credentials into a Secret of your own"))]
    pub secret_refs: Vec<String>,
    /// How the AgentAPI talks to the agent.
    #[serde(default)]
    pub transport: Transport,
    /// What becomes of the agent's requests for permission to use a tool.
    #[serde(default)]
    pub permissions: Permissions,
    /// The model that the agent talks to. Left out: what `env`, `secretRefs` and the agent itself say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
}

/// What becomes of an agent's requests for permission.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Permissions {
    /// Ask: a client of the session decides (`POST /v1/sessions/{id}/permission`).
    #[serde(default)]
    pub default: PermissionDefault,
    /// With Ask: a request that nobody has answered after this time is rejected.
    #[serde(default = "default_permission_timeout")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = ("self.matches('^([0-9]+(s|m|h))+$') && duration(self) >= duration('1s') && duration(self) <= duration('24h')", "permissions.timeout is a duration of 1s to 24h, written like 5m or 1h30m"))]
    pub timeout: String,
}

impl Default for Permissions {
    fn default() -> Self {
        Self { default: PermissionDefault::default(), timeout: default_permission_timeout() }
    }
}

fn default_permission_timeout() -> String {
    "5m".to_owned()
}

/// What becomes of a request for permission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PermissionDefault {
    /// A client of the session decides.
    #[default]
    Ask,
    /// It is allowed, each time.
    Allow,
    /// It is rejected, each time.
    Reject,
}

impl PermissionDefault {
    /// The name that the session host uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ask => "ask",
            Self::Allow => "allow",
            Self::Reject => "reject",
        }
    }
}

/// Agents whose terminal we know; as in coder/agentapi.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[allow(missing_docs)]
pub enum AgentType {
    Claude,
    Goose,
    Aider,
    Codex,
    Gemini,
    Copilot,
    Amp,
    Cursor,
    Auggie,
    AmazonQ,
    Opencode,
    Droid,
    Custom,
}

impl AgentType {
    /// The name that coder/agentapi uses for the agent (`agent_type`).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Claude => "claude",
            Self::Goose => "goose",
            Self::Aider => "aider",
            Self::Codex => "codex",
            Self::Gemini => "gemini",
            Self::Copilot => "copilot",
            Self::Amp => "amp",
            Self::Cursor => "cursor",
            Self::Auggie => "auggie",
            Self::AmazonQ => "amazonq",
            Self::Opencode => "opencode",
            Self::Droid => "droid",
            Self::Custom => "custom",
        }
    }
}

/// How the AgentAPI talks to an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Transport {
    /// A terminal of 80 columns that the agent draws on.
    #[default]
    Pty,
    /// The Agent Client Protocol.
    Acp,
}

impl Transport {
    /// The name that coder/agentapi uses (`transport`).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pty => "pty",
            Self::Acp => "acp",
        }
    }
}

/// When a session is suspended, and the volume on which it is kept.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Suspend {
    /// A session without a request for this long, whose agent is not at work, is suspended, for example `10m`.
    #[schemars(length(max = 16))]
    #[x_kube(validation = ("self.matches('^([0-9]+(s|m|h))+$') && duration(self) >= duration('10s')", "idleAfter is a duration of at least 10s, written like 10m or 1h30m"))]
    pub idle_after: String,
    /// Size of each session's volume: its agent's home, its conversation and, without `storage`, its working folder. It
    /// counts against the Organization's `quota.storage` until the session ends.
    #[serde(default = "default_suspend_size")]
    #[x_kube(validation = ("isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))", "size is a quantity above zero, for example 2Gi"))]
    pub size: Quantity,
    /// StorageClass. Left out: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

fn default_suspend_size() -> Quantity {
    Quantity("2Gi".into())
}

/// One volume for the working folders of all sessions of a Workspace.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Size of the volume, for example `5Gi`.
    #[x_kube(validation = ("isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))", "size is a quantity above zero, for example 5Gi"))]
    pub size: Quantity,
    /// StorageClass. Left out: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// One destination that the agent may connect to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.cidr) != has(self.__namespace__)", "an egress rule names exactly one of cidr (for example 203.0.113.0/24) and namespace (for example agentapi-demo)"))]
pub struct EgressRule {
    /// A range of IP addresses in CIDR notation (RFC 4632).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = ("isCIDR(self)", "cidr is a range of IP addresses, for example 203.0.113.0/24"))]
    pub cidr: Option<String>,
    /// A namespace of this cluster whose pods the agent may reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = ("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')", "write the name of a namespace (a-z, 0-9 and -), for example team-acme"))]
    #[x_kube(validation = ("!self.startsWith('agentapi-') || self == 'agentapi-demo'", "egress can't name a namespace that starts with agentapi-; those belong to tenants and to the operator"))]
    #[x_kube(validation = ("!(self in ['default', 'kube-system', 'kube-public', 'kube-node-lease'])", "egress can't name a namespace of the cluster itself (default, kube-system, kube-public, kube-node-lease): what runs there can reach everything; session pods can ask its DNS without a rule"))]
    pub namespace: Option<String>,
    /// TCP ports. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<i32>,
}

/// Observed state of a Workspace.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Id of the workspace in Postgres and in the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<String>,
    /// Warm pods that are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_pods: Option<i32>,
    /// Sessions that have a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<i32>,
    /// Accepted, Ready, EgressAllowed.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
