//! A tenant of a test of its own on the cluster, gone with its value. Panics, as tests do. May start only kubectl.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc, clippy::print_stdout)]
use crate::cluster::{Cluster, eventually};
use anyhow::Result;
use serde_json::Value;
use std::time::{Duration, Instant};
use url::Url;

/// Namespace of the operator.
pub const SYSTEM: &str = "agentapi-system";
/// Drift may not last longer.
const REPAIR: Duration = Duration::from_secs(5);
/// What is under way comes to an end.
pub const SETTLE: Duration = Duration::from_secs(60);

/// A tenant of a test of its own, gone with this value.
#[derive(Debug)]
pub struct Tenant {
    /// The cluster.
    pub cluster: Cluster,
    /// Its name.
    pub slug: String,
}

impl Tenant {
    /// An Organization with a Workspace `web`, both ready.
    pub async fn new(slug: &str) -> Self {
        let cluster = Cluster::connect().unwrap();
        let tenant = Self { cluster, slug: slug.to_owned() };
        tenant.clean_up();
        tenant.cluster.apply(&tenant.organization("")).unwrap();
        tenant.cluster.apply(&Tenant::workspace(&tenant.team(), slug, "web")).unwrap();
        tenant.ready("organization", None, slug).await;
        tenant.ready("workspace", Some(&tenant.team()), "web").await;
        tenant
    }

    /// Its namespace for resources and its Organization; `more` goes into the spec.
    pub fn organization(&self, more: &str) -> String {
        let slug = &self.slug;
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: team-{slug}}}\n---\n\
             apiVersion: agentapi.dev/v1alpha1\nkind: Organization\nmetadata: {{name: {slug}}}\n\
             spec:\n  displayName: {slug}\n  allowedNamespaces: {{names: [team-{slug}]}}\n  \
             identity: {{issuer: 'https://{slug}.example.com', audience: agentapi}}\n  \
             quota: {{workspaces: 2, sessions: 5, cpu: '8', memory: 16Gi, storage: 20Gi}}\n{more}"
        )
    }

    /// No warm pods: these tests need no image.
    pub fn workspace(namespace: &str, organization: &str, name: &str) -> String {
        format!(
            "apiVersion: agentapi.dev/v1alpha1\nkind: Workspace\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  organizationRef: {{name: {organization}}}\n  \
             agent: {{type: Claude, image: 'agentapi.dev/session-claude:dev'}}\n  egress: [{{cidr: 203.0.113.0/24}}]\n"
        )
    }

    /// The namespace of its resources.
    pub fn team(&self) -> String {
        format!("team-{}", self.slug)
    }

    /// The namespace of its pods.
    pub fn namespace(&self) -> String {
        format!("agentapi-{}", self.slug)
    }

    /// Waits until the object is ready.
    pub async fn ready(&self, kind: &str, namespace: Option<&str>, name: &str) {
        self.says(kind, namespace, name, "Ready", "True", "Reconciled").await;
    }

    /// Waits until the condition says this.
    pub async fn says(&self, kind: &str, namespace: Option<&str>, name: &str, which: &str, status: &str, reason: &str) {
        eventually(&format!("{kind} {name} has {which}={status} {reason}"), SETTLE, async || {
            let seen = self.cluster.condition(kind, namespace, name, which)?;
            Ok(if seen == Some((status.into(), reason.into())) { Ok(()) } else { Err(format!("{seen:?}")) })
        })
        .await
        .unwrap();
    }

    /// An object of its pods' namespace.
    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        self.cluster.get(kind, Some(&self.namespace()), name).unwrap()
    }

    /// The uid of such an object, or nothing.
    pub fn uid(&self, kind: &str, name: &str) -> String {
        self.get(kind, name).map(|object| object["metadata"]["uid"].as_str().unwrap().to_owned()).unwrap_or_default()
    }

    /// Polls until `right`, and fails when that takes longer than drift may last.
    pub async fn repaired(&self, what: &str, right: impl Fn() -> Result<bool>) {
        let began = Instant::now();
        eventually(what, REPAIR, async || Ok(if right()? { Ok(()) } else { Err("not yet".to_owned()) })).await.unwrap();
        println!("{what}: {} ms", began.elapsed().as_millis());
    }

    /// The answer of the cluster's Postgres, as its superuser.
    pub fn sql(&self, query: &str) -> String {
        let secret =
            self.cluster.get("secret", Some(SYSTEM), "agentapi-postgres").unwrap().expect("no agentapi-postgres");
        let mut url = Url::parse(&decoded(&secret["data"]["admin-url"])).unwrap();
        // From inside its own pod.
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_path("agentapi");
        let script = "PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); exec psql -qAtX \"$0\" -c \"$1\"";
        let pod = "statefulset/agentapi-postgres";
        self.cluster
            .kubectl(&["-n", SYSTEM, "exec", pod, "--", "sh", "-c", script, url.as_str(), query])
            .unwrap()
            .trim()
            .to_owned()
    }

    fn clean_up(&self) {
        let (team, slug) = (self.team(), &self.slug);
        for kind in ["workspaces", "mcpconnections", "promptpolicies"] {
            let gone = self.cluster.try_kubectl(&["-n", &team, "delete", kind, "--all", "--timeout=60s"], "");
            assert!(gone.is_ok());
        }
        for (kind, name) in [("organization", slug), ("namespace", &team)] {
            let args = ["delete", kind, name, "--ignore-not-found", "--timeout=90s"];
            assert!(self.cluster.try_kubectl(&args, "").is_ok());
        }
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        self.clean_up();
    }
}

/// The text of a value in a Secret.
pub fn decoded(value: &Value) -> String {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap();
    String::from_utf8(bytes).unwrap()
}
