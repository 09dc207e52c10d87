//! What goes on while things are killed: a conversation in each of two tenants, changes of custom resources, and a list
//! of everything that was acknowledged.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::api::Api;
use crate::cluster::{Cluster, eventually};

const READY: Duration = Duration::from_secs(90);

/// A session and what its API has acknowledged.
pub(super) struct Talk {
    pub(super) api: Api,
    pub(super) organization: &'static str,
    pub(super) workspace: &'static str,
    pub(super) session: String,
    /// Texts of messages that were answered with 200.
    pub(super) acknowledged: Vec<String>,
}

/// A change that was applied and may not be in place yet.
pub(super) struct Change {
    name: String,
    mark: String,
}

/// The work.
pub(super) struct Work {
    pub(super) talks: Vec<Talk>,
    /// Sessions that were created: organization and id.
    pub(super) sessions: Vec<(&'static str, String)>,
    /// In every text of this run.
    pub(super) run: String,
    count: u32,
}

/// Namespace and workspace that changes are made to.
const CHANGED: (&str, &str) = ("team-globex", "chaos");

impl Work {
    pub(super) async fn start(cluster: &Cluster) -> Result<Self> {
        let url = cluster.api_url()?;
        let api = |client: &str| Api::new(&url, Some(cluster.token(client)?));
        let run = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        let mut work = Self { talks: Vec::new(), sessions: Vec::new(), run, count: 0 };
        for (client, organization, workspace) in [("acme-alice", "acme", "web"), ("globex-gina", "globex", "research")]
        {
            let api = api(client)?;
            api.end_all().await?;
            let session = create(&api, workspace).await?;
            work.sessions.push((organization, session.clone()));
            work.talks.push(Talk { api, organization, workspace, session, acknowledged: Vec::new() });
        }
        for talk in &work.talks {
            talk.api.stable(&talk.session, READY).await?;
        }
        Ok(work)
    }

    /// One message in each conversation; both are acknowledged.
    pub(super) async fn say(&mut self) -> Result<()> {
        self.count += 1;
        let (run, count) = (&self.run, self.count);
        for talk in &mut self.talks {
            talk.api.stable(&talk.session, READY).await?;
            let text = format!("echo: chaos {run} {} {count}", talk.organization);
            send(&talk.api, &talk.session, &text).await?.map_err(anyhow::Error::msg)?;
            talk.acknowledged.push(text);
        }
        Ok(())
    }

    /// Keeps trying for a while, whatever happens; what was acknowledged all the same counts.
    pub(super) async fn say_through_the_storm(&mut self, how_long: Duration) {
        let began = Instant::now();
        while began.elapsed() < how_long {
            self.count += 1;
            let (run, count) = (self.run.clone(), self.count);
            for talk in &mut self.talks {
                let text = format!("echo: storm {run} {} {count}", talk.organization);
                let sent = tokio::time::timeout(Duration::from_secs(2), send(&talk.api, &talk.session, &text)).await;
                if matches!(sent, Ok(Ok(Ok(())))) {
                    talk.acknowledged.push(text);
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until a whole turn works again in each conversation. Seconds since `since` of the slower one.
    pub(super) async fn recovered(&mut self, since: Instant, limit: Duration) -> Result<f64> {
        self.count += 1;
        let (run, count) = (self.run.clone(), self.count);
        for talk in &mut self.talks {
            let mut attempt = 0;
            let text = eventually("a message is taken", limit, async || {
                // Another text each time: one that was not acknowledged may have arrived all the same.
                attempt += 1;
                let text = format!("echo: after {run} {} {count}.{attempt}", talk.organization);
                let sent = tokio::time::timeout(Duration::from_secs(30), send(&talk.api, &talk.session, &text)).await;
                Ok(match sent {
                    Ok(Ok(answer)) => answer.map(|()| text),
                    Ok(Err(error)) => Err(format!("{error:#}")),
                    Err(_) => Err("no answer within 30 s".to_owned()),
                })
            })
            .await?;
            talk.acknowledged.push(text.clone());
            let answer = text.trim_start_matches("echo: ").to_owned();
            eventually("the agent answers", limit, async || {
                let body = talk.api.get(&format!("/v1/sessions/{}/messages", talk.session)).await?.body;
                let said =
                    body["messages"].as_array().into_iter().flatten().rev().find(|message| message["role"] == "agent");
                let said = said.map(|message| message["content"].to_string()).unwrap_or_default();
                Ok(if said.contains(&answer) { Ok(()) } else { Err(said) })
            })
            .await?;
        }
        Ok(since.elapsed().as_secs_f64())
    }

    /// Another session than the conversation's, which is acknowledged, becomes ready, and ends.
    pub(super) async fn new_session(&mut self) -> Result<()> {
        let talk = &self.talks[0];
        let session = create(&talk.api, talk.workspace).await?;
        self.sessions.push((talk.organization, session.clone()));
        talk.api.stable(&session, READY).await?;
        let ended = talk.api.delete(&format!("/v1/sessions/{session}")).await?;
        if !ended.status.is_success() {
            bail!("ending a session: {} {}", ended.status, ended.body);
        }
        Ok(())
    }

    /// Applies a workspace with another value in its agent's environment.
    pub(super) fn change(&mut self, cluster: &Cluster) -> Result<Change> {
        self.count += 1;
        let (namespace, name) = CHANGED;
        let mark = format!("{}-{}", self.run, self.count);
        cluster.apply(&format!(
            "apiVersion: agentapi.dev/v1alpha1\nkind: Workspace\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  organizationRef: {{name: globex}}\n  maxSessions: 1\n  \
             agent: {{type: Claude, image: 'agentapi.dev/session-claude:dev', env: [{{name: CHAOS, value: '{mark}'}}]}}\n"
        ))?;
        Ok(Change { name: name.to_owned(), mark })
    }

    /// Waits until the change is in Kubernetes and in Postgres, and the status says so.
    pub(super) async fn changed(&self, cluster: &Cluster, change: &Change, limit: Duration) -> Result<()> {
        let api = &self.talks[1].api;
        eventually("the change is in place", limit, async || {
            let Ok(Some(template)) =
                cluster.get("podtemplate", Some("agentapi-globex"), &format!("ws-{}", change.name))
            else {
                return Ok(Err("no PodTemplate".to_owned()));
            };
            let environment = template["template"]["spec"]["containers"][0]["env"].to_string();
            if !environment.contains(&change.mark) {
                return Ok(Err(environment));
            }
            let Ok(Some(workspace)) = cluster.get("workspace", Some(CHANGED.0), CHANGED.1) else {
                return Ok(Err("no Workspace".to_owned()));
            };
            if workspace["status"]["observedGeneration"] != workspace["metadata"]["generation"] {
                return Ok(Err(workspace["status"].to_string()));
            }
            let listed = match api.get("/v1/workspaces").await {
                Ok(answer) => answer.body.to_string(),
                Err(error) => return Ok(Err(format!("{error:#}"))),
            };
            Ok(if listed.contains(&format!("\"{}\"", change.name)) { Ok(()) } else { Err(listed) })
        })
        .await
    }

    /// Namespace and name of the first conversation's pod.
    pub(super) fn session_pod(&self, cluster: &Cluster) -> Result<Option<Box<(String, String)>>> {
        let talk = self.talks.first().context("no conversation")?;
        Ok(cluster.session_pod(&talk.session)?.map(Box::new))
    }

    /// Ends the sessions and takes the workspace away.
    pub(super) async fn finish(&self, cluster: &Cluster) -> Result<()> {
        for talk in &self.talks {
            talk.api.end_all().await?;
        }
        cluster.kubectl(&["-n", CHANGED.0, "delete", "workspace", CHANGED.1, "--ignore-not-found", "--timeout=60s"])?;
        Ok(())
    }
}

async fn create(api: &Api, workspace: &str) -> Result<String> {
    let body = api.post("/v1/sessions", &json!({ "workspace": workspace })).await?.expect(201)?;
    Ok(body["id"].as_str().context("no id")?.to_owned())
}

/// Whether the message was acknowledged, or why not.
async fn send(api: &Api, session: &str, text: &str) -> Result<Result<(), String>> {
    let answer =
        api.post(&format!("/v1/sessions/{session}/message"), &json!({"content": text, "type": "user"})).await?;
    Ok(if answer.status == 200 { Ok(()) } else { Err(format!("{} {}", answer.status, answer.body)) })
}
