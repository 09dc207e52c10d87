//! Canary values in every place where a secret is, then a search of everything that people and collectors read: logs,
//! Events, status, pod specs, `kubectl describe`, metrics, error bodies, Postgres's statement log. And a planted leak,
//! which the search has to find.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_crds::names;
use agentapi_operator::envelope::MasterKey;
use agentapi_tests::{
    api::Api,
    cluster::{Cluster, Output, eventually},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;

const SYSTEM: &str = names::SYSTEM_NAMESPACE;
const TENANT: &str = "agentapi-acme";
const TEAM: &str = "team-acme";
const WORKSPACE: &str = "canary";
const READY: Duration = Duration::from_secs(120);
/// What `kubectl describe` is asked about.
const DESCRIBED: &str = "pods,podtemplates,secrets,configmaps,services,deployments,replicasets,statefulsets,\
                         networkpolicies,serviceaccounts,resourcequotas,limitranges,persistentvolumeclaims,\
                         roles,rolebindings,events";

/// A secret in all the forms in which it could be told.
struct Canary {
    what: String,
    forms: Vec<String>,
}

impl Canary {
    fn new(what: &str, value: &[u8]) -> Self {
        let hex = value.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        let mut forms = vec![hex, STANDARD.encode(value).trim_end_matches('=').to_owned()];
        if let Ok(text) = std::str::from_utf8(value) {
            // The lines of a key file, each by itself.
            forms.extend(text.lines().filter(|line| line.len() >= 16 && !line.starts_with("---")).map(str::to_owned));
        }
        Self { what: what.to_owned(), forms }
    }
}

/// What was looked at, and what it gave away.
#[derive(Default)]
struct Search {
    canaries: Vec<Canary>,
    places: usize,
    found: Vec<String>,
}

impl Search {
    fn add(&mut self, what: &str, value: &[u8]) {
        assert!(value.len() >= 16, "{what} is too short to be searched for");
        self.canaries.push(Canary::new(what, value));
    }

    fn look(&mut self, place: &str, text: &str) {
        self.places += 1;
        assert!(!text.trim().is_empty(), "{place} is empty: there is nothing to search");
        for Canary { what, forms } in &self.canaries {
            if let Some(form) = forms.iter().find(|form| text.contains(form.as_str())) {
                let at = text.find(form.as_str()).unwrap();
                let from = text.floor_char_boundary(at.saturating_sub(80));
                self.found.push(format!("{what} is in {place}, after {:?}", &text[from..at]));
            }
        }
    }
}

struct World {
    cluster: Cluster,
    url: String,
}

impl World {
    fn secret(&self, namespace: &str, name: &str) -> Vec<(String, Vec<u8>)> {
        let secret = self.cluster.get("secret", Some(namespace), name).unwrap();
        let secret = secret.unwrap_or_else(|| panic!("no Secret {namespace}/{name}"));
        let data = secret["data"].as_object().unwrap();
        data.iter().map(|(key, value)| (key.clone(), STANDARD.decode(value.as_str().unwrap()).unwrap())).collect()
    }

    /// psql in Postgres's own pod, with the URL of a Secret and perhaps another database.
    fn psql(&self, secret: (&str, &str, &str), database: Option<&str>, statement: &str) -> Output {
        let (namespace, name, key) = secret;
        let url = self.secret(namespace, name).into_iter().find(|(it, _)| it == key).unwrap().1;
        let mut url = url::Url::parse(&String::from_utf8(url).unwrap()).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        if let Some(database) = database {
            url.set_path(database);
        }
        let script = "PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); exec psql -qAtX \"$0\" -c \"$1\"";
        let pod = "statefulset/agentapi-postgres";
        let args = ["-n", SYSTEM, "exec", pod, "--", "sh", "-c", script, url.as_str(), statement];
        self.cluster.try_kubectl(&args, "").unwrap()
    }

    fn sql(&self, statement: &str) {
        let out = self.psql((SYSTEM, names::SECRET_POSTGRES, "admin-url"), None, statement);
        assert!(out.ok, "{statement}: {}", out.stderr);
    }

    /// The secrets of the platform and of the tenant that are there anyway.
    fn existing(&self, search: &mut Search) {
        for (key, value) in self.secret(SYSTEM, names::SECRET_POSTGRES) {
            if key == "postgres-password" {
                search.add("the administrator's password", &value);
            } else {
                let url = url::Url::parse(&String::from_utf8(value).unwrap()).unwrap();
                search.add(&format!("the password of {key}"), url.password().unwrap().as_bytes());
            }
        }
        let mut master = Vec::new();
        for name in [names::SECRET_SESSION_SIGNING, names::SECRET_AUDIT_SIGNING, names::SECRET_MASTER_KEY] {
            for (key, value) in self.secret(SYSTEM, name) {
                // Public halves are public.
                if !matches!(key.as_str(), "public.x" | "next.x" | "previous.x") {
                    search.add(&format!("{key} of {name}"), &value);
                }
                if name == names::SECRET_MASTER_KEY {
                    master.push(MasterKey::new(&value).unwrap());
                }
            }
        }
        let tenant = self.secret(TENANT, names::SECRET_DATABASE);
        search.add("the read-only password", &tenant.iter().find(|(key, _)| key == "password").unwrap().1);
        let keys = self.secret(TENANT, names::SECRET_DATA_KEY);
        let value = |name: &str| keys.iter().find(|(key, _)| key == name).unwrap().1.clone();
        let text = |name: &str| String::from_utf8(value(name)).unwrap();
        let organization: Uuid = text("organization-id").parse().unwrap();
        let by = master.iter().find(|key| key.id() == text("master-key-id")).expect("its master key");
        let open = by.unwrap(organization, text("version").parse().unwrap(), &value("wrapped")).unwrap();
        search.add("the data key", open.expose_secret());
        search.add("the wrapped data key", &value("wrapped"));
    }

    /// A workspace whose agent gets a key from a Secret.
    async fn workspace(&self, key: &str) {
        self.cluster
            .apply(&format!(
                "apiVersion: v1\nkind: Secret\nmetadata: {{name: canary-key, namespace: {TENANT}}}\n\
                 stringData: {{ANTHROPIC_API_KEY: {key}}}\n---\n\
                 apiVersion: agentapi.dev/v1alpha1\nkind: Workspace\n\
                 metadata: {{name: {WORKSPACE}, namespace: {TEAM}}}\nspec:\n  organizationRef: {{name: acme}}\n  \
                 agent:\n    type: Claude\n    image: agentapi.dev/session-claude:dev\n    secretRefs: [canary-key]\n    \
                 env: [{{name: ANTHROPIC_BASE_URL, value: 'http://fake-model.agentapi-demo.svc.cluster.local:8000'}}]\n  \
                 egress: [{{namespace: agentapi-demo, ports: [8000]}}]\n"
            ))
            .unwrap();
        self.cluster.ready("workspace", Some(TEAM), WORKSPACE, READY).await.unwrap();
    }

    fn clean_up(&self) {
        for (namespace, kind, name) in
            [(TEAM, "workspace", WORKSPACE), (TENANT, "secret", "canary-key"), (TENANT, "configmap", "planted-leak")]
        {
            let gone = self.cluster.try_kubectl(&["-n", namespace, "delete", kind, name, "--ignore-not-found"], "");
            assert!(gone.is_ok());
        }
    }

    /// Everything that somebody may read who may not read Secrets.
    fn search(&self, search: &mut Search) {
        for namespace in [SYSTEM, TENANT, TEAM] {
            let describe = ["-n", namespace, "describe", DESCRIBED];
            search.look(&format!("kubectl describe in {namespace}"), &self.cluster.kubectl(&describe).unwrap());
            let pods = ["-n", namespace, "get", "pods,podtemplates,events,configmaps", "-o", "yaml"];
            search.look(&format!("the specs in {namespace}"), &self.cluster.kubectl(&pods).unwrap());
        }
        let kinds = "organizations,workspaces,mcpconnections,promptpolicies";
        search.look("our resources", &self.cluster.kubectl(&["get", kinds, "-A", "-o", "yaml"]).unwrap());
        let events = self.cluster.kubectl(&["get", "events", "-A", "-o", "yaml"]).unwrap();
        search.look("all Events", &events);
        for namespace in [SYSTEM, TENANT] {
            for pod in self.cluster.list("pods", namespace, "").unwrap() {
                let name = pod["metadata"]["name"].as_str().unwrap();
                let containers = ["initContainers", "containers"].map(|kind| pod["spec"][kind].as_array());
                for container in containers.into_iter().flatten().flatten() {
                    let container = container["name"].as_str().unwrap();
                    for previous in [false, true] {
                        let previous = format!("--previous={previous}");
                        let logs = ["-n", namespace, "logs", name, "-c", container, &previous];
                        // A pod that has just begun or is about to go may have none.
                        let text = self.cluster.try_kubectl(&logs, "").unwrap().stdout;
                        if !text.is_empty() {
                            search.look(&format!("the log of {name}/{container}"), &text);
                        }
                    }
                }
            }
        }
    }

    async fn metrics(&self, search: &mut Search) {
        for (app, port) in [("agentapi-runtime", 9090), ("agentapi-operator", 8081)] {
            let forward = self.cluster.port_forward(SYSTEM, &format!("deployment/{app}"), port).unwrap();
            let text = Api::new(&forward.url(), None).unwrap().get("/metrics").await.unwrap().body;
            search.look(&format!("the metrics of {app}"), text.as_str().unwrap());
        }
    }

    /// Requests that fail, with secrets in every part of them.
    async fn errors(&self, api: &Api, session: &str, token: &str, canary: &str, search: &mut Search) {
        let post = |path: &str| api.request(Method::POST, path);
        let named = |name: &str| json!({ "workspace": WORKSPACE, "env": { name: canary } });
        let part = || reqwest::multipart::Part::bytes(canary.as_bytes().to_vec()).file_name("../../x");
        let message = format!("/v1/sessions/{session}/message");
        let requests = [
            (
                "an unknown workspace",
                post("/v1/sessions").json(&json!({"workspace": "nope", "env": {"A": canary}, "prompt": canary})),
            ),
            ("a bad name of a variable", post("/v1/sessions").json(&named("NOT-A-NAME"))),
            ("a reserved name of a variable", post("/v1/sessions").json(&named("AGENTAPI_X"))),
            ("a value of a wrong type", post("/v1/sessions").json(&json!({"workspace": WORKSPACE, "env": [canary]}))),
            (
                "half of a JSON",
                post("/v1/sessions").header("content-type", "application/json").body(format!("{{\"env\": \"{canary}")),
            ),
            ("a wrong media type", post("/v1/sessions").body(canary.to_owned())),
            ("an unknown field", post("/v1/sessions").json(&json!({"workspace": WORKSPACE, "secret": canary}))),
            ("a message of a wrong type", post(&message).json(&json!({"content": canary, "type": "shout"}))),
            ("a message that is none", post(&message).json(&json!({"content": {"x": canary}, "type": "user"}))),
            (
                "an upload with a path",
                post(&format!("/v1/sessions/{session}/upload"))
                    .multipart(reqwest::multipart::Form::new().part("nope", part())),
            ),
            // Not in here: paths and queries. They are logged, here and by every proxy; nothing secret belongs there.
            ("a path", api.request(Method::GET, "/v1/sessions/not-an-id")),
        ];
        for (what, request) in requests {
            let answer = api.send(request).await.unwrap();
            assert!(answer.status.is_client_error(), "{what}: {}", answer.status);
            search.look(&format!("the answer to {what}"), &answer.body.to_string());
        }
        // A token that is nearly right.
        for bad in [format!("{token}x"), format!("{}.{canary}", token.rsplit_once('.').unwrap().0)] {
            let answer = Api::new(&self.url, Some(bad)).unwrap().get("/v1/sessions").await.unwrap();
            assert_eq!(answer.status, 401);
            search.look("the answer to a bad token", &answer.body.to_string());
        }
    }
}

fn canary() -> String {
    format!("canary-{}", Uuid::new_v4().simple())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_is_where_people_look() {
    let cluster = Cluster::connect().unwrap();
    let world = World { url: cluster.api_url().unwrap(), cluster };
    world.clean_up();
    let token = world.cluster.token("acme-alice").unwrap();
    let api = Api::new(&world.url, Some(token.clone())).unwrap();
    api.end_all().await.unwrap();
    let [api_key, env, prompt, upload, failing] = [0; 5].map(|_| canary());
    world.workspace(&api_key).await;
    // From here on Postgres logs every statement.
    world.sql("alter system set log_statement = 'all'");
    world.sql("select pg_reload_conf()");

    let mut search = Search::default();
    world.existing(&mut search);
    for (what, value) in [
        ("the model's API key", &api_key),
        ("a variable of the session", &env),
        ("the prompt", &prompt),
        ("what was uploaded", &upload),
        ("what a failing request brought", &failing),
        ("the caller's token", &token),
    ] {
        search.add(what, value.as_bytes());
    }
    let body = json!({"workspace": WORKSPACE, "env": {"SOME_TOKEN": env}, "prompt": format!("echo: {prompt}")});
    let session = api.post("/v1/sessions", &body).await.unwrap().expect(201).unwrap();
    let id = session["id"].as_str().unwrap().to_owned();
    let messages = api.stable(&id, READY).await.unwrap();
    assert!(json!(messages).to_string().contains(&prompt), "the prompt did not reach the agent: {messages:?}");
    let part = reqwest::multipart::Part::bytes(upload.as_bytes().to_vec()).file_name("notes.txt");
    let form = reqwest::multipart::Form::new().part("file", part);
    let path = format!("/v1/sessions/{id}/upload");
    api.send(api.request(Method::POST, &path).multipart(form)).await.unwrap().expect(200).unwrap();
    let pods = world.cluster.list("pods", TENANT, &format!("{}={id}", names::LABEL_SESSION)).unwrap();
    let pod = pods[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let secret = world.secret(TENANT, &names::session_secret(&pod));
    search.add("the session's token", &secret.iter().find(|(key, _)| key == "token").unwrap().1);

    // A rotation writes a password and keys; the search comes after it.
    let rotation = format!("{}={}", names::ANNOTATION_ROTATE, Uuid::new_v4());
    let before = world.secret(TENANT, names::SECRET_DATABASE);
    world.cluster.kubectl(&["annotate", "organization", "acme", &rotation, "--overwrite"]).unwrap();
    eventually("another password", READY, async || {
        Ok(if world.secret(TENANT, names::SECRET_DATABASE) == before { Err("not yet".into()) } else { Ok(()) })
    })
    .await
    .unwrap();
    let after = world.secret(TENANT, names::SECRET_DATABASE);
    search.add("the next read-only password", &after.iter().find(|(key, _)| key == "password").unwrap().1);

    world.errors(&api, &id, &token, &failing, &mut search).await;
    world.metrics(&mut search).await;
    world.search(&mut search);

    // The agent is the same user as the session host, and can't look into it.
    let look = "for f in environ maps mem fd; do cat /proc/1/$f /proc/1/$f/* >/dev/null 2>&1 && echo readable $f; done; \
                tr '\\0' ' ' < /proc/1/cmdline";
    let inside = world.cluster.kubectl(&["-n", TENANT, "exec", &pod, "--", "sh", "-c", look]).unwrap();
    assert!(inside.contains("agentapi-runtime") && !inside.contains("readable"), "{inside}");

    // The search finds what it is for.
    let honest = search.found.len();
    let leak = format!("[{}]", STANDARD.encode(search_value(&world)));
    let leak = ["-n", TENANT, "create", "configmap", "planted-leak", &format!("--from-literal=note={leak}")];
    world.cluster.kubectl(&leak).unwrap();
    world.search(&mut search);
    let planted: Vec<String> = search.found.split_off(honest);

    world.sql("alter system reset log_statement");
    world.sql("select pg_reload_conf()");
    api.delete(&format!("/v1/sessions/{id}")).await.unwrap();
    world.clean_up();
    assert!(search.found.is_empty(), "{}", search.found.join("\n"));
    assert!(planted.iter().any(|it| it.contains("the next read-only password")), "the planted leak was not found");
    assert!(search.places > 30, "only {} places were searched", search.places);
    println!("{} places, {} secrets", search.places, search.canaries.len());
}

#[test]
fn read_only_logins_reach_their_database_and_no_other() {
    let cluster = Cluster::connect().unwrap();
    let world = World { url: String::new(), cluster };
    let login = (TENANT, names::SECRET_DATABASE, "url");
    assert_eq!(world.psql(login, None, "select current_user").stdout.trim(), "org_acme_ro");
    for database in ["postgres", "template1"] {
        let refused = world.psql(login, Some(database), "select 1");
        assert!(!refused.ok && refused.stderr.contains("pg_hba.conf"), "{database}: {}", refused.stderr);
    }
}

fn search_value(world: &World) -> Vec<u8> {
    world.secret(TENANT, names::SECRET_DATABASE).into_iter().find(|(key, _)| key == "password").unwrap().1
}
