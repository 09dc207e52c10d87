//! An organization leaves the real cluster: its session goes on until its time is over, its transcript is kept, the
//! operators are killed in the middle, and the receipt verifies. And one that leaves while Postgres does not answer.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_crds::names;
use agentapi_operator::receipt;
use agentapi_tests::{
    api::Api,
    cluster::{Cluster, eventually},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::time::Duration;

const SYSTEM: &str = names::SYSTEM_NAMESPACE;
const READY: Duration = Duration::from_secs(120);
/// With the grace period.
const GONE: Duration = Duration::from_secs(240);

fn decoded(value: &Value) -> String {
    String::from_utf8(STANDARD.decode(value.as_str().unwrap()).unwrap()).unwrap()
}

fn sql(cluster: &Cluster, statement: &str) -> String {
    let secret = cluster.get("secret", Some(SYSTEM), names::SECRET_POSTGRES).unwrap().unwrap();
    let mut url = url::Url::parse(&decoded(&secret["data"]["admin-url"])).unwrap();
    url.set_host(Some("127.0.0.1")).unwrap();
    let script = "PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); exec psql -qAtX \"$0\" -c \"$1\"";
    let pod = "statefulset/agentapi-postgres";
    let args = ["-n", SYSTEM, "exec", pod, "--", "sh", "-c", script, url.as_str(), statement];
    cluster.kubectl(&args).unwrap().trim().to_owned()
}

/// What the receipt of this organization says, if the operator has signed it.
async fn receipt_of(cluster: &Cluster, organization: &str, id: &str) -> Value {
    let key = cluster.get("secret", Some(SYSTEM), names::SECRET_AUDIT_SIGNING).unwrap().unwrap();
    let key = decoded(&key["data"][names::KEY_SIGNING_PUBLIC]);
    let name = format!("agentapi-receipt-{organization}-{}", &id[..8]);
    let map = eventually("the receipt", READY, async || {
        let found = cluster.get("configmap", Some(SYSTEM), &name)?;
        Ok(found.ok_or_else(|| format!("no ConfigMap {name}")))
    })
    .await
    .unwrap();
    let text = map["data"]["receipt.jws"].as_str().unwrap();
    assert!(receipt::verify(&text.replace('.', ".e"), &key).is_err());
    receipt::verify(text, &key).unwrap()
}

async fn gone(cluster: &Cluster, kind: &str, name: &str) {
    eventually(&format!("{kind} {name} is gone"), GONE, async || {
        let left = cluster.get(kind, None, name)?;
        Ok(left.map_or(Ok(()), |left| Err(left["status"].to_string())))
    })
    .await
    .unwrap();
}

async fn has(cluster: &Cluster, kind: &str, ns: Option<&str>, name: &str, word: &str) {
    eventually(&format!("{kind} {name}: {word}"), READY, async || {
        let object = cluster.get(kind, ns, name)?.unwrap_or_default();
        let conditions = object["status"]["conditions"].to_string();
        Ok(if conditions.contains(word) { Ok(()) } else { Err(conditions) })
    })
    .await
    .unwrap();
}

/// Organization and Workspaces as they can be applied again.
fn saved(cluster: &Cluster) -> String {
    let mut organization = cluster.get("organization", None, "globex").unwrap().expect("no globex");
    organization["metadata"] = json!({ "name": "globex" });
    organization.as_object_mut().unwrap().remove("status");
    organization.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_organization_leaves_and_its_session_ends_in_order() {
    let cluster = Cluster::connect().unwrap();
    let saved = saved(&cluster);
    let url = cluster.api_url().unwrap();
    let gina = Api::new(&url, Some(cluster.token("globex-gina").unwrap())).unwrap();
    gina.end_all().await.unwrap();
    let new = json!({ "workspace": "research" });
    let session = gina.post("/v1/sessions", &new).await.unwrap().expect(201).unwrap();
    let session = session["id"].as_str().unwrap().to_owned();
    gina.stable(&session, READY).await.unwrap();
    let organization = cluster.get("organization", None, "globex").unwrap().unwrap();
    let id = organization["metadata"]["uid"].as_str().unwrap().to_owned();

    let mut events = gina.events(&format!("/v1/sessions/{session}/events"), None).await.unwrap();
    let grace = r#"{"spec":{"drainGracePeriodSeconds":60}}"#;
    cluster.kubectl(&["patch", "organization", "globex", "--type=merge", "-p", grace]).unwrap();
    cluster.kubectl(&["delete", "organization", "globex", "--wait=false"]).unwrap();
    has(&cluster, "organization", None, "globex", "sessions may go on until").await;
    let refused = gina.post("/v1/sessions", &new).await.unwrap();
    assert_eq!((refused.status.as_u16(), refused.problem()), (409, "organization-leaving"), "{}", refused.body);
    // The session that runs goes on, also without an operator.
    let operators = "app.kubernetes.io/name=agentapi-operator";
    let kill = ["-n", SYSTEM, "delete", "pods", "-l", operators, "--force", "--grace-period=0", "--wait=false"];
    cluster.kubectl(&kill).unwrap();
    let said = json!({ "content": "echo: last words", "type": "user" });
    gina.post(&format!("/v1/sessions/{session}/message"), &said).await.unwrap().expect(200).unwrap();
    gina.stable(&session, READY).await.unwrap();

    gone(&cluster, "organization", "globex").await;
    let mut notices = Vec::new();
    while let Some(event) = tokio::time::timeout(READY, events.recv()).await.expect("the stream ends") {
        if event.name == "agent_error" {
            notices.push(event.data);
        }
    }
    assert_eq!(notices.len(), 1, "whoever follows the session hears of its end, once: {notices:?}");
    assert_eq!(notices[0]["level"], "warning");
    assert!(cluster.get("namespace", None, "agentapi-globex").unwrap().is_none());
    let claims = receipt_of(&cluster, "globex", &id).await;
    println!("{claims:#}");
    assert_eq!(claims["organizationId"], id);
    assert_eq!(claims["steps"]["drain"]["sessionsCutOff"], 0, "{claims}");
    assert_eq!(sql(&cluster, "select count(*) from pg_roles where rolname ~ '^org_globex'"), "0");
    assert_eq!(sql(&cluster, &format!("select count(*) from tenant_keys where org_id = '{id}'")), "0");
    let head = format!("select seq || ' ' || encode(hash, 'hex') from audit_heads where org_id = '{id}'");
    let told = format!("{} {}", claims["audit"]["seq"], claims["audit"]["hash"].as_str().unwrap());
    assert_eq!(sql(&cluster, &head), told);
    if claims["deletionPolicy"] == "Retain" {
        let kept = "select count(*) from messages where content like '%last words%'";
        let kept = format!("{kept} and session_id = '{session}' and org_id = '{id}'");
        assert_ne!(sql(&cluster, &kept), "0", "the transcript was not handed in");
    }
    // Its people are nobody's now.
    assert_eq!(gina.get("/v1/sessions").await.unwrap().status, 401);

    cluster.apply(&saved).unwrap();
    has(&cluster, "organization", None, "globex", "\"Reconciled\"").await;
    has(&cluster, "workspace", Some("team-globex"), "research", "\"Reconciled\"").await;
    let next = eventually("the successor takes sessions", READY, async || {
        let answer = gina.post("/v1/sessions", &new).await?;
        Ok(if answer.status == 201 { Ok(answer.body) } else { Err(answer.body.to_string()) })
    })
    .await
    .unwrap();
    let old = gina.get(&format!("/v1/sessions/{session}")).await.unwrap();
    assert_eq!(old.status, 404, "a successor sees nothing of its predecessor");
    gina.delete(&format!("/v1/sessions/{}", next["id"].as_str().unwrap())).await.unwrap();
}

fn configure(cluster: &Cluster, variables: &[&str]) {
    let args = ["-n", SYSTEM, "set", "env", "deployment/agentapi-operator"];
    cluster.kubectl(&[&args[..], variables].concat()).unwrap();
    let roll = ["-n", SYSTEM, "rollout", "status", "deployment/agentapi-operator", "--timeout=120s"];
    cluster.kubectl(&roll).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_not_waited_for_for_ever_and_the_receipt_comes_later() {
    let cluster = Cluster::connect().unwrap();
    configure(&cluster, &["DELETION_DEADLINE_SECONDS=20"]);
    cluster
        .apply(
            "apiVersion: agentapi.dev/v1alpha1\nkind: Organization\nmetadata: {name: e2e-leaves}\nspec:\n  \
             displayName: leaves\n  drainGracePeriodSeconds: 0\n  deletionPolicy: Delete\n  \
             identity: {issuer: 'https://e2e-leaves.example.com', audience: agentapi}\n",
        )
        .unwrap();
    has(&cluster, "organization", None, "e2e-leaves", "\"Reconciled\"").await;
    let organization = cluster.get("organization", None, "e2e-leaves").unwrap().unwrap();
    let id = organization["metadata"]["uid"].as_str().unwrap().to_owned();
    let of_operator = "from pg_stat_activity where usename = 'agentapi_operator'";
    sql(&cluster, "alter role agentapi_operator nologin");
    sql(&cluster, &format!("select pg_terminate_backend(pid) {of_operator}"));
    cluster.kubectl(&["delete", "organization", "e2e-leaves", "--wait=false"]).unwrap();
    has(&cluster, "organization", None, "e2e-leaves", "waits for Postgres").await;
    gone(&cluster, "organization", "e2e-leaves").await;
    let row = format!("select count(*) from organizations where id = '{id}'");
    assert_eq!(sql(&cluster, &row), "1", "Postgres could not be told");
    sql(&cluster, "alter role agentapi_operator login");

    let claims = receipt_of(&cluster, "e2e-leaves", &id).await;
    assert_eq!(claims["deletionPolicy"], "Delete");
    assert_eq!(sql(&cluster, &row), "0");
    assert_eq!(sql(&cluster, "select count(*) from pg_roles where rolname ~ '^org_e2e_leaves'"), "0");
    gone(&cluster, "namespace", "agentapi-e2e-leaves").await;
    configure(&cluster, &["DELETION_DEADLINE_SECONDS=600"]);
}
