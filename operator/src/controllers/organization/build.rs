//! The objects of a tenant namespace, built from a validated spec. Pure, and each is a snapshot in the tests.
use super::network::{default_deny, session_traffic};
use crate::{
    config::Config,
    quantity,
    tenancy::{credentials::Credentials, keys::DataKeys, organization::Tenant},
};
use agentapi_crds::{names, organization::Quota};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::{
    ByteString,
    api::{
        core::v1::{
            LimitRange, LimitRangeItem, LimitRangeSpec, Namespace, ResourceQuota, ResourceQuotaSpec, Secret,
            ServiceAccount,
        },
        networking::v1::NetworkPolicy,
        rbac::v1::{RoleBinding, RoleRef, Subject},
    },
};
use kube::api::ObjectMeta;
use secrecy::{ExposeSecret, SecretString};
use std::{collections::BTreeMap, marker::PhantomData};
use url::Url;

/// When the password was made (RFC 3339).
pub const ANNOTATION_ROTATED_AT: &str = "agentapi.dev/rotated-at";
/// Value of the Organization's rotation annotation that the password was made for.
pub const ANNOTATION_ROTATION: &str = "agentapi.dev/rotation";
/// Key of the wrapped bytes in the data-key Secret.
pub const KEY_WRAPPED: &str = "wrapped";
/// Key of the data key's version in the data-key Secret.
pub const KEY_VERSION: &str = "version";
/// Key of the name of the master key in the data-key Secret.
pub const KEY_MASTER_ID: &str = "master-key-id";
/// Key of the password in the database Secret.
pub const KEY_PASSWORD: &str = "password";

/// Suspended sessions for each that may run at the same time.
const SUSPENDED_PER_SESSION: i64 = 10;

/// Not written to the cluster yet.
#[derive(Debug)]
pub enum Prepared {}
/// Live in the cluster.
#[derive(Debug)]
pub enum Applied {}

/// What has to be there before anything else can be: the namespace and our own rights in it.
#[derive(Debug)]
pub struct Foundation<State> {
    /// The tenant namespace.
    pub namespace: Namespace,
    /// Our own rights in it.
    pub operator_binding: RoleBinding,
    /// The runtime's rights in it.
    pub runtime_binding: RoleBinding,
    pub(super) state: PhantomData<State>,
}

/// Everything in the tenant namespace that needs no Postgres.
#[derive(Debug)]
pub struct Contents<State> {
    /// Upper limits of all pods together.
    pub quota: ResourceQuota,
    /// Limits of a container that has none.
    pub limits: LimitRange,
    /// Nothing in, nothing out.
    pub default_deny: NetworkPolicy,
    /// What session pods need: DNS and the runtime.
    pub session_traffic: NetworkPolicy,
    /// Of session pods, without a token.
    pub session_account: ServiceAccount,
    /// Of pods that name none, without a token.
    pub default_account: ServiceAccount,
    pub(super) state: PhantomData<State>,
}

/// What comes out of Postgres.
#[derive(Debug)]
pub struct TenantSecrets<State> {
    /// Connection of the read-only role.
    pub database: Secret,
    /// The wrapped data key.
    pub data_key: Secret,
    pub(super) state: PhantomData<State>,
}

/// The namespace and the rights in it.
pub fn foundation(tenant: &Tenant, config: &Config) -> Foundation<Prepared> {
    let mut labels = labels(tenant);
    for mode in ["enforce", "warn", "audit"] {
        labels.insert(format!("pod-security.kubernetes.io/{mode}"), "restricted".into());
        labels.insert(format!("pod-security.kubernetes.io/{mode}-version"), "latest".into());
    }
    let namespace = Namespace {
        metadata: ObjectMeta {
            name: Some(names::tenant_namespace(&tenant.slug)),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    let binding = |role: &str, account: &str| RoleBinding {
        metadata: meta(tenant, role),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".into(),
            kind: "ClusterRole".into(),
            name: role.into(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: account.into(),
            namespace: Some(config.system_namespace.clone()),
            api_group: None,
        }]),
    };
    Foundation {
        namespace,
        operator_binding: binding(names::OPERATOR_TENANT_CLUSTER_ROLE, &config.operator_service_account),
        runtime_binding: binding(names::RUNTIME_TENANT_CLUSTER_ROLE, &config.runtime_service_account),
        state: PhantomData,
    }
}

/// Everything in the namespace that needs no Postgres.
pub fn contents(tenant: &Tenant, quota: &Quota, config: &Config) -> Contents<Prepared> {
    Contents {
        quota: resource_quota(tenant, quota),
        limits: limit_range(tenant, quota),
        default_deny: default_deny(tenant),
        session_traffic: session_traffic(tenant, config),
        session_account: service_account(tenant, names::SESSION_SERVICE_ACCOUNT),
        default_account: service_account(tenant, "default"),
        state: PhantomData,
    }
}

/// The two Secrets of the namespace.
pub fn secrets(
    tenant: &Tenant,
    credentials: &Credentials,
    server: &(String, String),
    keys: &DataKeys,
) -> TenantSecrets<Prepared> {
    TenantSecrets {
        database: database_secret(tenant, credentials, server),
        data_key: data_key_secret(tenant, keys),
        state: PhantomData,
    }
}

fn labels(tenant: &Tenant) -> BTreeMap<String, String> {
    BTreeMap::from([
        (names::LABEL_MANAGED_BY.to_owned(), names::OPERATOR.to_owned()),
        (names::LABEL_ORGANIZATION.to_owned(), tenant.slug.clone()),
    ])
}

pub(super) fn meta(tenant: &Tenant, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(names::tenant_namespace(&tenant.slug)),
        labels: Some(labels(tenant)),
        ..ObjectMeta::default()
    }
}

/// What probe pods of the operator need, two of them at the same time: the tenant does not pay for being watched.
const PROBE_CPU: &str = "200m";
const PROBE_MEMORY: &str = "128Mi";
/// A container that asks for more on the node's disk gets a volume (`spec.storage`) instead.
const MOST_EPHEMERAL: &str = "20Gi";

/// Session pods, warm pods that wait for the next ones, pods that are on their way out, programs of connections, and two
/// probes.
fn pods(quota: &Quota) -> i64 {
    2 * i64::from(quota.sessions) + i64::from(quota.workspaces) + i64::from(quota.mcp_servers) + 2
}

/// Volumes of workspaces, of session pods, and of suspended sessions; how large they are together is `quota.storage`.
fn volumes(quota: &Quota) -> i64 {
    i64::from(quota.workspaces) + pods(quota) + SUSPENDED_PER_SESSION * i64::from(quota.sessions)
}

fn resource_quota(tenant: &Tenant, quota: &Quota) -> ResourceQuota {
    let gibibytes = |each: i64| Quantity(format!("{}Gi", each * pods(quota)));
    let hard = BTreeMap::from([
        ("limits.cpu".to_owned(), quantity::plus(&quota.cpu, PROBE_CPU)),
        ("limits.memory".to_owned(), quantity::plus(&quota.memory, PROBE_MEMORY)),
        ("requests.storage".to_owned(), quota.storage.clone()),
        ("pods".to_owned(), Quantity(pods(quota).to_string())),
        ("requests.ephemeral-storage".to_owned(), gibibytes(1)),
        ("limits.ephemeral-storage".to_owned(), gibibytes(10)),
        ("persistentvolumeclaims".to_owned(), Quantity(volumes(quota).to_string())),
        // One for each program of a connection. Session pods are reached by their address; a Service would only lead
        // somebody else to them.
        ("services".to_owned(), Quantity(quota.mcp_servers.to_string())),
        ("services.nodeports".to_owned(), Quantity("0".to_owned())),
        ("services.loadbalancers".to_owned(), Quantity("0".to_owned())),
    ]);
    ResourceQuota {
        metadata: meta(tenant, "organization"),
        spec: Some(ResourceQuotaSpec { hard: Some(hard), ..ResourceQuotaSpec::default() }),
        status: None,
    }
}

fn limit_range(tenant: &Tenant, quota: &Quota) -> LimitRange {
    // No container may be larger than the whole organization, and the API server wants defaults below the maximum.
    let amounts = |cpu: Quantity, memory: Quantity, ephemeral: &str| {
        Some(BTreeMap::from([
            ("cpu".to_owned(), cpu),
            ("memory".to_owned(), memory),
            ("ephemeral-storage".to_owned(), Quantity(ephemeral.to_owned())),
        ]))
    };
    let most_cpu = quantity::plus(&quota.cpu, PROBE_CPU);
    let most_memory = quantity::plus(&quota.memory, PROBE_MEMORY);
    let least = |cpu: &str, memory: &str| (quantity::least(&most_cpu, cpu), quantity::least(&most_memory, memory));
    let ((cpu, memory), (cpu_request, memory_request)) = (least("1", "1Gi"), least("100m", "256Mi"));
    LimitRange {
        metadata: meta(tenant, "organization"),
        spec: Some(LimitRangeSpec {
            limits: vec![
                LimitRangeItem {
                    type_: "Container".into(),
                    default: amounts(cpu, memory, "1Gi"),
                    default_request: amounts(cpu_request, memory_request, "128Mi"),
                    max: amounts(most_cpu.clone(), most_memory.clone(), MOST_EPHEMERAL),
                    ..LimitRangeItem::default()
                },
                LimitRangeItem {
                    type_: "PersistentVolumeClaim".into(),
                    max: Some([("storage".to_owned(), quota.storage.clone())].into()),
                    ..LimitRangeItem::default()
                },
            ],
        }),
    }
}

fn service_account(tenant: &Tenant, name: &str) -> ServiceAccount {
    ServiceAccount {
        metadata: meta(tenant, name),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// The Secret with the read-only role's connection.
fn database_secret(tenant: &Tenant, credentials: &Credentials, server: &(String, String)) -> Secret {
    let (host, database) = server;
    let role = tenant.roles.read.as_str();
    let password = credentials.password.expose_secret();
    let url = SecretString::from(format!("postgres://{role}:{password}@{host}/{database}"));
    let (name, port) = split_host(host);
    let data = [
        ("url", url.expose_secret()),
        ("username", role),
        (KEY_PASSWORD, password),
        ("host", &name),
        ("port", &port),
        ("database", database),
    ];
    let mut metadata = meta(tenant, names::SECRET_DATABASE);
    metadata.annotations = Some(BTreeMap::from([
        (ANNOTATION_ROTATED_AT.to_owned(), credentials.rotated_at.to_string()),
        (ANNOTATION_ROTATION.to_owned(), credentials.rotation.clone()),
    ]));
    Secret {
        metadata,
        type_: Some("Opaque".into()),
        data: Some(
            data.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec()))).collect(),
        ),
        ..Secret::default()
    }
}

fn split_host(host: &str) -> (String, String) {
    match Url::parse(&format!("postgres://{host}")) {
        Ok(url) => (url.host_str().unwrap_or(host).to_owned(), url.port().unwrap_or(5432).to_string()),
        Err(_) => (host.to_owned(), "5432".to_owned()),
    }
}

/// Name of an older version's value in the data-key Secret.
pub fn of_version(key: &str, version: i32) -> String {
    format!("{key}.{version}")
}

/// The Secret with the wrapped data keys; what it holds is useless without the master key.
fn data_key_secret(tenant: &Tenant, keys: &DataKeys) -> Secret {
    let key = &keys.current;
    let mut data = vec![
        (KEY_WRAPPED.to_owned(), key.wrapped.clone()),
        (KEY_VERSION.to_owned(), key.version.to_string().into_bytes()),
        (KEY_MASTER_ID.to_owned(), key.master_key_id.clone().into_bytes()),
        ("organization-id".to_owned(), tenant.id.to_string().into_bytes()),
    ];
    for old in &keys.previous {
        data.push((of_version(KEY_WRAPPED, old.version), old.wrapped.clone()));
        data.push((of_version(KEY_MASTER_ID, old.version), old.master_key_id.clone().into_bytes()));
    }
    Secret {
        metadata: meta(tenant, names::SECRET_DATA_KEY),
        type_: Some("Opaque".into()),
        data: Some(data.into_iter().map(|(key, value)| (key, ByteString(value))).collect()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::organization::{
        tests::{acme, config},
        validate::validate,
    };
    use crate::tenancy::keys::WrappedKey;

    #[test]
    fn a_tenant_namespace() {
        let organization = acme();
        let tenant = validate(&organization).unwrap();
        let Foundation { namespace, operator_binding, runtime_binding, state: _ } = foundation(&tenant, &config());
        let current = WrappedKey { version: 2, wrapped: vec![1, 2, 3], master_key_id: "abcd".into() };
        let old = WrappedKey { version: 1, wrapped: vec![4, 5, 6], master_key_id: "cdef".into() };
        let key = DataKeys { current, previous: vec![old] };
        let credentials = Credentials {
            password: "pw".to_owned().into(),
            rotated_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            rotation: String::new(),
        };
        let server = ("db.example:5433".to_owned(), "agentapi".to_owned());
        let Contents { quota, limits, default_deny, session_traffic, session_account, default_account, state: _ } =
            contents(&tenant, &organization.spec.quota, &config());
        let TenantSecrets { database, data_key, state: _ } = secrets(&tenant, &credentials, &server, &key);
        insta::assert_yaml_snapshot!("namespace", namespace);
        insta::assert_yaml_snapshot!("bindings", (operator_binding, runtime_binding));
        insta::assert_yaml_snapshot!("limits", (quota, limits));
        insta::assert_yaml_snapshot!("network", (default_deny, session_traffic));
        insta::assert_yaml_snapshot!("accounts", (session_account, default_account));
        insta::assert_yaml_snapshot!("secrets", (database, data_key));
    }
}
