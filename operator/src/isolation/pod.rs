//! TCP from the place of a session pod: a pod with the labels of one, so that exactly the same policies select it, which
//! tries to connect and says what answered in its termination message. A new pod each time: a container that ends again
//! and again is restarted later and later, and nothing can be asked of a running one without a right to exec or to logs.
use super::Outcome;
use crate::{
    context::Context,
    controllers::workspace::pool::{has_ended, trouble},
    envelope,
    error::{Error, Result},
};
use agentapi_crds::{Workspace, names, names::env};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// From the creation of the pod to its result.
const PATIENCE: Duration = Duration::from_secs(60);
/// Other tenants that one round tries to reach.
const MOST_TENANTS: usize = 8;
/// What must be reachable, or the network does not work at all and proves nothing.
const CONTROL: &str = "the runtime's internal API";
/// The kubelet's port, and where an API server listens on a node of the control plane.
const KUBELET_PORT: u16 = 10250;
const API_SERVER_PORT: u16 = 6443;

/// Try from the place of a session pod of the organization, with the labels of `workspace` if it has one.
pub async fn probe(context: &Context, slug: &str, workspace: Option<&Workspace>) -> Outcome {
    let Some(image) = context.config.probe_image.as_deref() else {
        return Outcome::unknown("no image for probe pods is set (PROBE_IMAGE)");
    };
    match run(context, slug, workspace, image).await {
        Ok(outcome) => outcome,
        Err(error) => Outcome::unknown(error.to_string()),
    }
}

async fn run(context: &Context, slug: &str, workspace: Option<&Workspace>, image: &str) -> Result<Outcome> {
    let pods = Api::<Pod>::namespaced(context.client.clone(), &names::tenant_namespace(slug));
    sweep(context, &pods).await?;
    let targets = targets(context, slug).await?;
    let name = format!("probe-{}", hex::encode(envelope::random::<4>()?));
    let pod = context.applier.create(&pods, &pod(&name, slug, workspace, image, &targets)?).await?;
    let ended = wait(&pods, &pod.name_any()).await?;
    context.applier.delete(&pods, &name).await?;
    Ok(match ended {
        Ended::Said(message) => judge(&message, &targets),
        Ended::Silent(why) => Outcome::unknown(format!("the probe pod did not run: {why}")),
    })
}

/// What an earlier round or an earlier leader left.
async fn sweep(context: &Context, pods: &Api<Pod>) -> Result<()> {
    let selector =
        format!("{}={},{}={}", names::LABEL_POOL, names::POOL_PROBE, names::LABEL_MANAGED_BY, names::OPERATOR);
    context.applier.sweep(pods, &selector, |_| false).await
}

enum Ended {
    Said(String),
    Silent(String),
}

async fn wait(pods: &Api<Pod>, name: &str) -> Result<Ended> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let live = pods.get_opt(name).await.map_err(|error| Error::kube("get", "Pod", name, error))?;
        let Some(live) = live else { return Ok(Ended::Silent("somebody deleted it".into())) };
        if has_ended(&live) {
            let mut containers = live.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            let message =
                containers.find_map(|container| container.state.as_ref()?.terminated.as_ref()?.message.clone());
            return Ok(message.map_or_else(|| Ended::Silent("it ended without a result".into()), Ended::Said));
        }
        if Instant::now() > deadline {
            let why = trouble(&[live]).unwrap_or_else(|| "it did not end in time".into());
            // The name is another one each time, and the status must not be.
            return Ok(Ended::Silent(why.replace(name, "probe")));
        }
        sleep(Duration::from_millis(500)).await;
    }
}

type Targets = BTreeMap<String, String>;

/// What a session pod must not reach, by name, and the one thing that it must.
async fn targets(context: &Context, slug: &str) -> Result<Targets> {
    let mut targets = Targets::new();
    let mut add = |name: String, host: &str, port: u16| {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        targets.insert(name, format!("{host}:{port}"));
    };
    let internal = context.config.runtime_internal_url();
    if let Ok(url) = url::Url::parse(&internal) {
        add(CONTROL.into(), url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(80));
    }
    let database = context.database.connect_options();
    add("Postgres".into(), database.get_host(), database.get_port());
    if let Ok(host) = std::env::var("KUBERNETES_SERVICE_HOST") {
        add("the API server".into(), &host, 443);
    }
    // The kubelet fills in the address of the node.
    let node = format!("$({})", env::HOST_IP);
    add("the API server on the node".into(), &node, API_SERVER_PORT);
    add("the kubelet".into(), &node, KUBELET_PORT);
    add("the metadata address".into(), "169.254.169.254", 80);
    let system = Api::<Pod>::namespaced(context.client.clone(), &context.config.system_namespace);
    for (app, port, what) in [
        (names::RUNTIME, names::RUNTIME_METRICS_PORT, "the runtime's metrics"),
        (names::RUNTIME, names::RUNTIME_PORT, "the runtime's public API"),
        (names::OPERATOR, names::OPERATOR_HEALTH_PORT, "the operator"),
    ] {
        let found = list(&system, &format!("app.kubernetes.io/name={app}")).await?;
        if let Some(address) = found.iter().find_map(address) {
            add(what.into(), &address, port);
        }
    }
    let all = Api::<Pod>::all(context.client.clone());
    let selector = format!(
        "{}={},{}!={slug},{}!={}",
        names::LABEL_COMPONENT,
        names::COMPONENT_SESSION,
        names::LABEL_ORGANIZATION,
        names::LABEL_POOL,
        names::POOL_PROBE
    );
    let mut seen = BTreeSet::new();
    for pod in list(&all, &selector).await? {
        let (Some(address), Some(of)) = (address(&pod), pod.labels().get(names::LABEL_ORGANIZATION)) else { continue };
        if seen.len() < MOST_TENANTS && seen.insert(of.clone()) {
            add(format!("a session pod of {of}"), &address, names::SESSION_PORT);
        }
    }
    Ok(targets)
}

async fn list(pods: &Api<Pod>, selector: &str) -> Result<Vec<Pod>> {
    let listed = pods.list(&ListParams::default().labels(selector).limit(500)).await;
    Ok(listed.map_err(|error| Error::kube("list", "Pod", selector, error))?.items)
}

/// Of a pod that runs: nothing answers for another.
fn address(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let running = status.phase.as_deref() == Some("Running") && pod.metadata.deletion_timestamp.is_none();
    status.pod_ip.clone().filter(|_| running)
}

fn pod(name: &str, slug: &str, workspace: Option<&Workspace>, image: &str, targets: &Targets) -> Result<Pod> {
    let mut labels = BTreeMap::from([
        (names::LABEL_MANAGED_BY, names::OPERATOR.to_owned()),
        (names::LABEL_ORGANIZATION, slug.to_owned()),
        (names::LABEL_COMPONENT, names::COMPONENT_SESSION.to_owned()),
        (names::LABEL_POOL, names::POOL_PROBE.to_owned()),
    ]);
    if let Some(workspace) = workspace {
        labels.insert(names::LABEL_WORKSPACE, workspace.name_any());
        labels.insert(names::LABEL_WORKSPACE_NAMESPACE, workspace.namespace().unwrap_or_default());
    }
    let amounts = json!({ "cpu": "100m", "memory": "64Mi", "ephemeral-storage": "16Mi" });
    let node = json!({ "fieldRef": { "apiVersion": "v1", "fieldPath": "status.hostIP" } });
    let pod: Value = json!({
        "metadata": { "name": name, "namespace": names::tenant_namespace(slug), "labels": labels },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": PATIENCE.as_secs(),
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "serviceAccountName": names::SESSION_SERVICE_ACCOUNT,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 10001, "runAsGroup": 10001,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "probe",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["agentapi-runtime", "probe"],
                "env": [
                    { "name": env::HOST_IP, "valueFrom": node },
                    { "name": env::PROBE_TARGETS, "value": json!({ "control": CONTROL, "targets": targets }).to_string() },
                ],
                "resources": { "requests": { "cpu": "10m", "memory": "16Mi", "ephemeral-storage": "16Mi" }, "limits": amounts },
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
                },
            }],
        },
    });
    serde_json::from_value(pod).map_err(|error| Error::Malformed { kind: "Pod".into(), reason: error.to_string() })
}

/// What the pod saw.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    service_account_token: bool,
    results: BTreeMap<String, String>,
}

/// Pure: what the report of the pod proves.
fn judge(message: &str, targets: &Targets) -> Outcome {
    let Ok(report) = serde_json::from_str::<Report>(message) else {
        return Outcome::unknown("the probe pod's result can't be read");
    };
    let mut findings = Vec::new();
    if report.service_account_token {
        findings.push("a session pod has a service account token".to_owned());
    }
    let mut unclear = Vec::new();
    for name in targets.keys().filter(|name| *name != CONTROL) {
        match report.results.get(name).map(String::as_str) {
            Some("open") => findings.push(format!("{name} can be reached from a session pod")),
            Some("closed") => {}
            Some(other) => unclear.push(format!("{name}: {other}")),
            None => unclear.push(format!("{name}: was not tried")),
        }
    }
    if !findings.is_empty() {
        return Outcome::breached(&findings);
    }
    // Only now: a network that lets nothing through looks like isolation.
    if report.results.get(CONTROL).map(String::as_str) != Some("open") {
        return Outcome::unknown(format!(
            "{CONTROL} can't be reached either, so that nothing is proved; is there DNS?"
        ));
    }
    if !unclear.is_empty() {
        return Outcome::unknown(unclear.join("; "));
    }
    Outcome::passed("only what it must reach can be reached")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::workspace::tests::web;
    use agentapi_crds::isolation::ProbeResult;
    use rstest::rstest;

    fn wanted() -> Targets {
        [CONTROL, "Postgres", "the kubelet"].map(|name| (name.to_owned(), "x:1".to_owned())).into()
    }

    #[rstest]
    #[case::all_closed("open", "closed", "closed", false, ProbeResult::Passed)]
    #[case::one_open("open", "open", "closed", false, ProbeResult::Breached)]
    #[case::a_token("open", "closed", "closed", true, ProbeResult::Breached)]
    #[case::nothing_works("closed", "closed", "closed", false, ProbeResult::Unknown)]
    #[case::nothing_works_but_a_door("closed", "open", "closed", false, ProbeResult::Breached)]
    #[case::no_name("open", "unresolved", "closed", false, ProbeResult::Unknown)]
    fn a_dead_network_is_no_isolation(
        #[case] control: &str,
        #[case] postgres: &str,
        #[case] kubelet: &str,
        #[case] token: bool,
        #[case] result: ProbeResult,
    ) {
        let report = json!({ "serviceAccountToken": token,
            "results": { CONTROL: control, "Postgres": postgres, "the kubelet": kubelet } });
        assert_eq!(judge(&report.to_string(), &wanted()).result, result);
    }

    #[test]
    fn a_report_that_leaves_something_out_proves_nothing() {
        let report = json!({ "serviceAccountToken": false, "results": { CONTROL: "open", "Postgres": "closed" } });
        assert_eq!(judge(&report.to_string(), &wanted()).result, ProbeResult::Unknown);
        assert_eq!(judge("panicked", &wanted()).result, ProbeResult::Unknown);
    }

    #[test]
    fn a_probe_pod() {
        insta::assert_yaml_snapshot!("pod", pod("probe-00", "acme", Some(&web()), "runtime:1", &wanted()).unwrap());
    }
}
