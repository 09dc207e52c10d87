//! How the API takes, watches and gives back pods, on a real API server: two replicas never claim one warm pod, a
//! session's Secret belongs to its pod, and nothing is left when the session is over.
#![cfg(feature = "cluster")]

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use agentapi_crds::names;
use agentapi_runtime::auth::session_token::SessionTokens;
use agentapi_runtime::metrics::Metrics;
use agentapi_runtime::pods::kubernetes::KubernetesPods;
use agentapi_runtime::pods::{Pod, PodBackend, PodError, PodKind, PodRequest, PodState, Rekey};
use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::idp::ed25519;
use agentapi_tests::serve::pem;
use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Pod as KubePod, PodTemplate, Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, ResourceExt};
use secrecy::SecretString;
use serde_json::json;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(90);

/// A tenant namespace that nobody reconciles, with one workspace `web`, gone with the test.
struct Room {
    client: Client,
    organization: String,
    pods: KubernetesPods,
    tokens: Arc<SessionTokens>,
}

impl Room {
    async fn new(command: &[&str]) -> Result<Self> {
        let client = Client::try_default().await?;
        let organization = format!("pods-{}", &Uuid::new_v4().simple().to_string()[..8]);
        let name = names::tenant_namespace(&organization);
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        let template: PodTemplate = serde_json::from_value(json!({
            "metadata": {"name": names::pod_template("web")},
            "template": {
                "metadata": {"labels": {
                    names::LABEL_WORKSPACE: "web", names::LABEL_ORGANIZATION: organization,
                    names::LABEL_COMPONENT: names::COMPONENT_SESSION,
                }},
                "spec": {
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": 0,
                    "automountServiceAccountToken": false,
                    "containers": [{
                        "name": names::SESSION_CONTAINER, "image": "agentapi.dev/postgres:dev",
                        "imagePullPolicy": "IfNotPresent", "command": command,
                        "volumeMounts": [{"name": "session", "mountPath": "/run/agentapi/session"}],
                    }],
                    "volumes": [{"name": "session", "secret": {"secretName": "placeholder", "optional": true}}],
                },
            },
        }))?;
        Api::namespaced(client.clone(), &name).create(&PostParams::default(), &template).await?;
        // The controller manager makes it, and without it no pod is admitted.
        let accounts = Api::<ServiceAccount>::namespaced(client.clone(), &name);
        eventually("the namespace's ServiceAccount", SOON, async || {
            Ok(accounts.get_opt("default").await?.map(drop).ok_or_else(|| "none".to_owned()))
        })
        .await?;
        let pods = KubernetesPods::new(client.clone(), Metrics::new()?);
        let tokens = Arc::new(SessionTokens::from_pem(&pem(&ed25519()?.0))?);
        Ok(Self { client, organization, pods, tokens })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &names::tenant_namespace(&self.organization))
    }

    /// What the operator does.
    async fn warm(&self, name: &str) -> Result<()> {
        let template = self.api::<PodTemplate>().get(&names::pod_template("web")).await?;
        let pod = agentapi_crds::pod::instantiate(&template, name, names::POOL_WARM);
        self.api::<KubePod>().create(&PostParams::default(), &pod).await?;
        eventually("a ready warm pod", SOON, async || {
            let pod = self.api::<KubePod>().get(name).await?;
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
            let ready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
            Ok(if ready { Ok(()) } else { Err(format!("{:?}", pod.status)) })
        })
        .await
    }

    fn request(&self) -> PodRequest {
        PodRequest {
            session: Uuid::now_v7(),
            organization: self.organization.clone(),
            workspace: "web".into(),
            env: BTreeMap::from([("WORD".to_owned(), SecretString::from("hunter2"))]),
            prompt: None,
            system_prompt: None,
            tokens: Arc::clone(&self.tokens),
            token_key: "first-key".into(),
        }
    }

    async fn gone(self) -> Result<()> {
        let name = names::tenant_namespace(&self.organization);
        Api::<Namespace>::all(self.client).delete(&name, &DeleteParams::default()).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn warm_pods_are_claimed_once_and_the_rest_are_made() -> Result<()> {
    let room = Room::new(&["sleep", "600"]).await?;
    for name in ["w-web-1", "w-web-2", "w-web-3"] {
        room.warm(name).await?;
    }
    let requests: Vec<PodRequest> = (0..6).map(|_| room.request()).collect();
    let taken = futures::future::join_all(requests.iter().map(|request| room.pods.acquire(request))).await;
    let taken: Vec<Pod> = taken.into_iter().collect::<Result<_, _>>()?;
    let names: HashSet<&str> = taken.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!(names.len(), 6, "{taken:?}");
    assert_eq!(taken.iter().filter(|pod| pod.kind == PodKind::Warm).count(), 3, "{taken:?}");

    for (request, pod) in requests.iter().zip(&taken) {
        // A second attempt finds the same pod.
        assert_eq!(room.pods.acquire(request).await?.name, pod.name);
        let seen = room.pods.wait_running(&room.organization, &pod.name, SOON).await?.context("no pod")?;
        assert!(matches!(seen.state, PodState::Running(_)), "{seen:?}");
        let kube = room.api::<KubePod>().get(&pod.name).await?;
        assert_eq!(kube.labels()[names::LABEL_SESSION], request.session.to_string());
        assert!(!serde_json::to_string(&kube)?.contains("hunter2"), "the environment is in the pod");
        let secret = room.api::<Secret>().get(&names::session_secret(&pod.name)).await?;
        let owner = secret.owner_references().first().context("the Secret has no owner")?;
        assert_eq!(Some(&owner.uid), kube.metadata.uid.as_ref());
        let data = secret.data.context("no data")?;
        assert_eq!(data["env.json"].0, br#"{"WORD":"hunter2"}"#);
        assert_eq!(pod.token_key, "first-key");
        let rekey = Rekey {
            token: SecretString::from("renewed"),
            token_key: "second-key".into(),
            public_keys: vec!["abcdefghijklmnop".into(), "bcdefghijklmnopq".into()],
        };
        room.pods.rekey(&room.organization, &pod.name, &rekey).await?;
        let data = room.api::<Secret>().get(&names::session_secret(&pod.name)).await?.data.context("no data")?;
        assert_eq!((data["token"].0.as_slice(), data.len()), (&b"renewed"[..], 4));
        assert_eq!(data["public-keys"].0, b"abcdefghijklmnop,bcdefghijklmnopq");
        let unnoted = room.pods.wait_running(&room.organization, &pod.name, SOON).await?.context("no pod")?;
        assert_eq!((unnoted.known_keys.as_str(), unnoted.token_key.as_str()), ("", ""), "not before the pod has them");
        room.pods.rekeyed(&room.organization, &pod.name, &rekey).await?;
        let noted = room.pods.wait_running(&room.organization, &pod.name, SOON).await?.context("no pod")?;
        assert_eq!((noted.known_keys.as_str(), noted.token_key.as_str()), ("abcdefghijkl,bcdefghijklm", "second-key"));
    }
    assert_eq!(room.pods.of_sessions(&room.organization).await?.len(), 6);

    for request in &requests {
        eventually("the session's things are gone", SOON, async || {
            let gone = room.pods.release(&room.organization, request.session, None).await?;
            Ok(if gone { Ok(()) } else { Err("not yet".to_owned()) })
        })
        .await?;
    }
    let left = room.api::<KubePod>().list(&ListParams::default()).await?.items.len();
    let secrets = room.api::<Secret>().list(&ListParams::default()).await?;
    let secrets: Vec<String> = secrets.iter().map(ResourceExt::name_any).collect();
    assert_eq!((left, secrets), (0, vec![]));
    room.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_ends_or_a_workspace_that_is_not_ready_is_said_in_words() -> Result<()> {
    let room = Room::new(&["sh", "-c", "exit 3"]).await?;
    let request = room.request();
    let pod = room.pods.acquire(&request).await?;
    let seen = room.pods.wait_running(&room.organization, &pod.name, SOON).await?.context("no pod")?;
    match seen.state {
        PodState::Failed(why) => assert!(why.contains("exit code 3"), "{why}"),
        // Seen in the moment that it ran.
        PodState::Running(_) => {}
        other => bail!("{other:?}"),
    }
    let elsewhere = PodRequest { workspace: "nope".into(), ..room.request() };
    match room.pods.acquire(&elsewhere).await {
        Err(PodError::Refused(why)) => assert!(why.contains("workspace nope is not ready"), "{why}"),
        other => bail!("{other:?}"),
    }
    assert!(room.pods.wait_running(&room.organization, "s-nope", SOON).await?.is_none());
    room.gone().await
}
