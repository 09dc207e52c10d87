//! The vocabulary that the operator, the runtime, the charts and the tests share: group, labels,
//! annotations, ports, Secret keys, environment keys. Only constants and pure naming functions.

/// API group of all our custom resources.
pub const GROUP: &str = "agentapi.dev";
/// Version of all our custom resources.
pub const VERSION: &str = "v1alpha1";

/// Field manager of the operator's server-side apply, and value of [`LABEL_MANAGED_BY`].
pub const OPERATOR: &str = "agentapi-operator";
/// Name of the runtime: its Service, Deployment, `ServiceAccount` and the issuer of session tokens.
pub const RUNTIME: &str = "agentapi-runtime";
/// Namespace that the operator, the runtime and the optional Postgres run in by default.
pub const SYSTEM_NAMESPACE: &str = "agentapi-system";

/// `app.kubernetes.io/managed-by`, set to [`OPERATOR`] on everything that the operator owns.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// `app.kubernetes.io/component`, [`COMPONENT_SESSION`] on session pods.
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Value of [`LABEL_COMPONENT`] on session pods.
pub const COMPONENT_SESSION: &str = "session";
/// Slug of the Organization that an object belongs to.
pub const LABEL_ORGANIZATION: &str = "agentapi.dev/organization";
/// Name of the Workspace that an object belongs to.
pub const LABEL_WORKSPACE: &str = "agentapi.dev/workspace";
/// Namespace of the Workspace that an object belongs to.
pub const LABEL_WORKSPACE_NAMESPACE: &str = "agentapi.dev/workspace-namespace";
/// `app.kubernetes.io/component` of pods that run the program of a stdio `McpConnection`.
pub const COMPONENT_MCP_SERVER: &str = "mcp-server";
/// Name of the `McpConnection` that an object belongs to.
pub const LABEL_MCP_CONNECTION: &str = "agentapi.dev/mcp-connection";
/// Namespace of the `McpConnection` that an object belongs to.
pub const LABEL_MCP_CONNECTION_NAMESPACE: &str = "agentapi.dev/mcp-connection-namespace";
/// Id (`UUIDv7`) of the session that a pod serves.
pub const LABEL_SESSION: &str = "agentapi.dev/session";
/// How a session pod came to be: [`POOL_WARM`], [`POOL_CLAIMED`] or [`POOL_COLD`].
pub const LABEL_POOL: &str = "agentapi.dev/pool";
/// A pod that waits for a session.
pub const POOL_WARM: &str = "warm";
/// A warm pod that a session has taken.
pub const POOL_CLAIMED: &str = "claimed";
/// A pod that was made for one session.
pub const POOL_COLD: &str = "cold";
/// A pod of the operator that tries from a session pod's place to reach what it must not.
pub const POOL_PROBE: &str = "probe";
/// On a Secret of a tenant namespace: hosts, separated by commas, to which connections that were made through the API may
/// send it.
pub const ANNOTATION_MCP_HOSTS: &str = "agentapi.dev/mcp-hosts";
/// Digest of the pod template that a warm pod was made from; an outdated warm pod is replaced.
pub const ANNOTATION_TEMPLATE_HASH: &str = "agentapi.dev/template-hash";
/// Setting this annotation on an Organization to a new value rotates the read-only role's password.
pub const ANNOTATION_ROTATE: &str = "agentapi.dev/rotate-credentials";
/// Setting this annotation on an Organization to a new value makes a new version of its data key.
pub const ANNOTATION_ROTATE_DATA_KEY: &str = "agentapi.dev/rotate-data-key";
/// Setting this annotation on one of the two key Secrets of the system namespace to a new value rotates the key.
pub const ANNOTATION_ROTATE_KEY: &str = "agentapi.dev/rotate";
/// Ids of the keys whose tokens a session pod accepts, sorted, with commas. Public.
pub const ANNOTATION_SESSION_KEYS: &str = "agentapi.dev/session-keys";
/// Id of the key that signed the session token that a pod has.
pub const ANNOTATION_SESSION_TOKEN_KEY: &str = "agentapi.dev/session-token-key";
/// Digest of the system prompt that a waiting pod's agent has been started with.
pub const ANNOTATION_PROMPT_DIGEST: &str = "agentapi.dev/prompt-digest";
/// Finalizer on every custom resource that owns something outside its own namespace.
pub const FINALIZER: &str = "agentapi.dev/cleanup";

/// Port of the agent API inside a session pod (coder/agentapi's default), and its name.
pub const SESSION_PORT: u16 = 3284;
/// Name of [`SESSION_PORT`] in the pod.
pub const SESSION_PORT_NAME: &str = "agentapi";
/// Port of the public API of the runtime.
pub const RUNTIME_PORT: u16 = 8080;
/// Port of the runtime's internal API, for session pods only.
pub const RUNTIME_INTERNAL_PORT: u16 = 8090;
/// Port of the runtime's metrics.
pub const RUNTIME_METRICS_PORT: u16 = 9090;
/// Port of the operator's probes and metrics.
pub const OPERATOR_HEALTH_PORT: u16 = 8081;

/// Port at which the pod of a stdio `McpConnection` speaks streamable HTTP, below the path `/mcp`.
pub const MCP_STDIO_PORT: u16 = 8090;

/// Port on which the model router of a session pod serves its agent, on the loopback address only.
pub const MODEL_ROUTER_PORT: u16 = 3456;
/// Port of the model router's probes, and its name.
pub const MODEL_ROUTER_HEALTH_PORT: u16 = 3457;
/// Name of [`MODEL_ROUTER_HEALTH_PORT`] in the pod.
pub const MODEL_ROUTER_HEALTH_PORT_NAME: &str = "router-health";
/// Name of the model router's container in a session pod.
pub const MODEL_ROUTER_CONTAINER: &str = "model-router";

/// Name of the agent's container in a session pod.
pub const SESSION_CONTAINER: &str = "agent";
/// `ServiceAccount` of session pods; it has no token.
pub const SESSION_SERVICE_ACCOUNT: &str = "session";
/// `ClusterRole` that the operator binds to the runtime in each tenant namespace.
pub const RUNTIME_TENANT_CLUSTER_ROLE: &str = "agentapi-runtime-tenant";
/// `ClusterRole` that the operator binds to itself in each tenant namespace.
pub const OPERATOR_TENANT_CLUSTER_ROLE: &str = "agentapi-operator-tenant";
/// `Role` in each tenant namespace: the Secrets that `McpConnections` name, for the runtime to get; and its binding.
pub const RUNTIME_MCP_ROLE: &str = "agentapi-runtime-mcp";

/// Secret in the system namespace with the key pair that signs session tokens.
pub const SECRET_SESSION_SIGNING: &str = "agentapi-session-signing";
/// PKCS#8 PEM of the Ed25519 private key in [`SECRET_SESSION_SIGNING`].
pub const KEY_SIGNING_PRIVATE: &str = "private.pem";
/// base64url of the 32-byte Ed25519 public key in [`SECRET_SESSION_SIGNING`] (the `x` of RFC 8037).
pub const KEY_SIGNING_PUBLIC: &str = "public.x";
/// The pair that replaces the present one as soon as all session pods know it.
pub const KEY_SIGNING_NEXT_PRIVATE: &str = "next.pem";
/// Public half of [`KEY_SIGNING_NEXT_PRIVATE`].
pub const KEY_SIGNING_NEXT_PUBLIC: &str = "next.x";
/// Public half of the predecessor, until nobody holds a token that it signed.
pub const KEY_SIGNING_PREVIOUS_PUBLIC: &str = "previous.x";
/// Secret in the system namespace with the operator's own key pair ([`KEY_SIGNING_PRIVATE`], [`KEY_SIGNING_PUBLIC`]):
/// it signs statements about tenants, such as checkpoints of their audit logs.
pub const SECRET_AUDIT_SIGNING: &str = "agentapi-audit-signing";
/// `typ` of a signed checkpoint of an organization's audit log.
pub const STATEMENT_CHECKPOINT: &str = "agentapi-checkpoint+jwt";
/// `typ` of a signed receipt of an organization's removal.
pub const STATEMENT_RECEIPT: &str = "agentapi-receipt+jwt";
/// Secret in the system namespace with the 32-byte master key that wraps the tenants' data keys.
pub const SECRET_MASTER_KEY: &str = "agentapi-master-key";
/// Key in [`SECRET_MASTER_KEY`].
pub const KEY_MASTER: &str = "key";
/// The master key that wraps as soon as every replica of the runtime can open what it wraps, in [`SECRET_MASTER_KEY`].
pub const KEY_MASTER_NEXT: &str = "next";
/// Older master keys in [`SECRET_MASTER_KEY`], each under this prefix and its id, until nothing is wrapped by them.
pub const KEY_MASTER_PREVIOUS: &str = "previous.";
/// Secret in a tenant namespace with the wrapped data key.
pub const SECRET_DATA_KEY: &str = "agentapi-data-key";
/// Secret in a tenant namespace with the connection of the read-only role.
pub const SECRET_DATABASE: &str = "agentapi-database";
/// Secret of the chart with the three connection URLs.
pub const SECRET_POSTGRES: &str = "agentapi-postgres";

/// Issuer of the tokens that the runtime mints.
pub const TOKEN_ISSUER: &str = RUNTIME;
/// Audience of the tokens with which the runtime calls a session pod (at most 60 s).
pub const TOKEN_AUDIENCE_POD: &str = "agentapi-session-pod";
/// Audience of the token with which a session pod calls the runtime.
pub const TOKEN_AUDIENCE_INTERNAL: &str = "agentapi-internal";
/// Audience of the token with which the operator asks the runtime to try the role of a tenant.
pub const TOKEN_AUDIENCE_ISOLATION: &str = "agentapi-isolation";

/// Environment of a session pod; each constant is the name of the variable.
pub mod env {
    /// Address that the session host listens on.
    pub const LISTEN: &str = "AGENTAPI_LISTEN";
    /// Agent type, as in coder/agentapi (`claude`, `codex`, …).
    pub const AGENT_TYPE: &str = "AGENTAPI_AGENT_TYPE";
    /// Command of the agent as a JSON array; unset: the agent type's own.
    pub const AGENT_COMMAND: &str = "AGENTAPI_AGENT_COMMAND";
    /// `pty` or `acp`.
    pub const TRANSPORT: &str = "AGENTAPI_TRANSPORT";
    /// `ask`, `allow` or `reject`: what becomes of the agent's requests for permission.
    pub const PERMISSIONS: &str = "AGENTAPI_PERMISSIONS";
    /// How long such a request waits for an answer.
    pub const PERMISSION_TIMEOUT: &str = "AGENTAPI_PERMISSION_TIMEOUT";
    /// Public keys that session tokens are checked with, sorted, with commas.
    pub const SESSION_PUBLIC_KEY: &str = "AGENTAPI_SESSION_PUBLIC_KEY";
    /// Base URL of the runtime's internal API.
    pub const RUNTIME_INTERNAL_URL: &str = "AGENTAPI_RUNTIME_INTERNAL_URL";
    /// Folder of the session's saved state.
    pub const STATE_DIR: &str = "AGENTAPI_STATE_DIR";
    /// Bytes on its disk that are kept back for the state.
    pub const STATE_RESERVE: &str = "AGENTAPI_STATE_RESERVE";
    /// Folder that the agent works in.
    pub const WORKDIR: &str = "AGENTAPI_WORKDIR";
    /// Folder where the session's Secret is mounted.
    pub const SESSION_SECRET_DIR: &str = "AGENTAPI_SESSION_SECRET_DIR";
    /// What a probe pod tries to reach, as JSON.
    pub const PROBE_TARGETS: &str = "AGENTAPI_PROBE_TARGETS";
    /// Address of the node, from the downward API.
    pub const HOST_IP: &str = "AGENTAPI_HOST_IP";
    /// Google credentials as JSON, from a Secret; the session host and the model router write them into a file.
    pub const GOOGLE_CREDENTIALS: &str = "AGENTAPI_GOOGLE_CREDENTIALS";
    /// Configuration of the model router as JSON, without a secret.
    pub const MODEL_ROUTER: &str = "AGENTAPI_MODEL_ROUTER";
    /// Before a number: the API key of an upstream of the model router.
    pub const MODEL_ROUTER_KEY: &str = "AGENTAPI_MODEL_KEY_";
    /// Name of the pod, from the downward API.
    pub const POD_NAME: &str = "AGENTAPI_POD_NAME";
}

/// Longest id of an answer to an agent's request for permission, in bytes: agents name them themselves, and the audit log
/// keeps them.
pub const MAX_PERMISSION_OPTION: usize = 256;
/// Decisions about permissions that a session pod reports at a time.
pub const MAX_PERMISSION_DECISIONS: usize = 64;

/// Key of a session's Secret with the public keys that replace those of the pod's environment.
pub const SESSION_SECRET_PUBLIC_KEYS: &str = "public-keys";

/// Names a signing key (`kid` of its tokens): the start of its public half, which is random enough to be its own id.
pub fn signing_key_id(public: &str) -> &str {
    public.get(..12).unwrap_or(public)
}

/// Ids of public keys as [`ANNOTATION_SESSION_KEYS`] has them.
pub fn signing_key_ids<'a>(public: impl IntoIterator<Item = &'a str>) -> String {
    let mut ids: Vec<&str> = public.into_iter().map(signing_key_id).collect();
    ids.sort_unstable();
    ids.join(",")
}

/// Namespace of an organization's session pods.
pub fn tenant_namespace(organization: &str) -> String {
    format!("agentapi-{organization}")
}

/// Postgres role of an organization.
pub fn tenant_role(organization: &str) -> String {
    format!("org_{}", organization.replace('-', "_"))
}

/// Postgres role that the runtime takes on for an organization: its name is the id as Postgres also reads it, so that to
/// policies `current_user::uuid` is the organization. The brace tells it from all other roles.
pub fn tenant_id_role(id: &str) -> String {
    format!("{{{id}}}")
}

/// Postgres login role of an organization for direct, read-only use.
pub fn tenant_read_role(organization: &str) -> String {
    format!("{}_ro", tenant_role(organization))
}

/// `PodTemplate` of a workspace in its tenant namespace.
pub fn pod_template(workspace: &str) -> String {
    format!("ws-{workspace}")
}

/// Service, `Deployment` and policy of a stdio `McpConnection` in its tenant namespace.
pub fn mcp_server(connection: &str) -> String {
    format!("agentapi-mcp-{connection}")
}

/// Where the runtime reaches the program of a stdio `McpConnection`.
pub fn mcp_server_url(organization: &str, connection: &str, cluster_domain: &str) -> String {
    let (service, namespace) = (mcp_server(connection), tenant_namespace(organization));
    format!("http://{service}.{namespace}.svc.{cluster_domain}:{MCP_STDIO_PORT}/mcp")
}

/// Secret of a session, named after its pod so that a warm pod can mount it before it exists.
pub fn session_secret(pod: &str) -> String {
    format!("{pod}-session")
}

/// Volume claim of a session's [`crate::pod::DATA_VOLUME`], named after its pod as Kubernetes names it for a warm one.
pub fn session_volume(pod: &str) -> String {
    format!("{pod}-{}", crate::pod::DATA_VOLUME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_tenant_are_valid_where_they_are_used() {
        assert_eq!(tenant_namespace("acme"), "agentapi-acme");
        assert_eq!(tenant_role("big-corp"), "org_big_corp");
        assert_eq!(tenant_read_role("big-corp"), "org_big_corp_ro");
        assert_eq!(tenant_id_role("2b8e4a5c-1111-4222-8333-444455556666"), "{2b8e4a5c-1111-4222-8333-444455556666}");
        assert_eq!(session_secret("w-web-1"), "w-web-1-session");
        let url = mcp_server_url("acme", "files", "cluster.local");
        assert_eq!(url, "http://agentapi-mcp-files.agentapi-acme.svc.cluster.local:8090/mcp");
    }

    #[test]
    fn keys_are_named_the_same_whatever_their_order() {
        let (a, b) = ("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "zzz");
        assert_eq!(signing_key_ids([b, a]), "11qYAYKxCrfV,zzz");
        assert_eq!(signing_key_ids([a, b]), signing_key_ids([b, a]));
    }
}
