//! A conversation with the agent of one session, as a client of the API has it: in tests with and without a cluster.
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::api::{Answer, Api};
use crate::cluster::eventually;

/// A session and its user.
#[derive(Clone, Debug)]
pub struct Talk {
    /// The user.
    pub api: Api,
    /// The session.
    pub id: String,
    patience: Duration,
}

impl Talk {
    /// The conversation of a session that is there. `patience`: how long anything may take.
    pub fn of(api: &Api, id: &str, patience: Duration) -> Self {
        Self { api: api.clone(), id: id.to_owned(), patience }
    }

    /// A new session, once its agent takes messages.
    ///
    /// # Errors
    /// When it can't be created or does not get that far.
    pub async fn begin(api: &Api, body: &Value, patience: Duration) -> Result<Self> {
        let session = api.post("/v1/sessions", body).await?.expect(201)?;
        let talk = Self::of(api, session["id"].as_str().context("no id")?, patience);
        talk.stable().await?;
        Ok(talk)
    }

    /// The path of one of its routes, such as `messages`.
    pub fn path(&self, route: &str) -> String {
        format!("/v1/sessions/{}/{route}", self.id)
    }

    /// What one of its routes says.
    ///
    /// # Errors
    /// When it does not answer with 200.
    pub async fn get(&self, route: &str) -> Result<Value> {
        self.api.get(&self.path(route)).await?.expect(200)
    }

    /// The messages, once the agent is done.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn stable(&self) -> Result<Vec<Value>> {
        self.api.stable(&self.id, self.patience).await
    }

    /// The messages, once the agent is done and draws nothing more either: one in a terminal may do so after it was stopped.
    ///
    /// # Errors
    /// When that is not in time.
    pub async fn at_rest(&self) -> Result<Vec<Value>> {
        let mut before = self.stable().await?;
        eventually("the agent is at rest", self.patience, async || {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let now = self.stable().await?;
            let same = now == before;
            before.clone_from(&now);
            Ok(if same { Ok(now) } else { Err("it still draws".to_owned()) })
        })
        .await
    }

    /// Says something; gives back whatever the API answers.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn say(&self, text: &str) -> Result<Answer> {
        self.api.post(&self.path("message"), &json!({"content": text, "type": "user"})).await
    }

    /// Says something that the agent has to take, as soon as it is not busy with itself: one in a terminal may draw something
    /// between two turns.
    ///
    /// # Errors
    /// When it does not take it in time.
    pub async fn send(&self, text: &str) -> Result<()> {
        let taken = eventually("the message is taken", self.patience, async || {
            let sent = self.say(text).await?;
            Ok(if sent.status == 409 && sent.problem() == "agent-busy" { Err("busy".to_owned()) } else { Ok(sent) })
        });
        taken.await?.expect(200).map(drop)
    }

    /// What the agent has said last, once it is done.
    ///
    /// # Errors
    /// When the last word is not the agent's.
    pub async fn said(&self) -> Result<String> {
        last(&self.stable().await?)
    }

    /// Says something; gives back what the agent says to it.
    ///
    /// # Errors
    /// When it is not taken or answered.
    pub async fn turn(&self, text: &str) -> Result<String> {
        self.send(text).await?;
        self.said().await
    }

    /// Says something and waits for `answer`.
    ///
    /// # Errors
    /// When it is not taken or answered.
    pub async fn ask(&self, text: &str, answer: &str) -> Result<Vec<Value>> {
        self.send(text).await?;
        self.says(answer).await
    }

    /// The messages, once the agent has said these words: on a busy machine a terminal can be quiet for a while before they
    /// come. Wakes no session that is suspended.
    ///
    /// # Errors
    /// When it does not say them in time.
    pub async fn says(&self, words: &str) -> Result<Vec<Value>> {
        eventually("the agent's words", self.patience, async || {
            let body = self.get("messages").await?;
            let messages = body["messages"].as_array().cloned().unwrap_or_default();
            let there = messages
                .iter()
                .any(|it| it["role"] == "agent" && it["content"].as_str().is_some_and(|text| text.contains(words)));
            Ok(if there { Ok(messages) } else { Err(body.to_string()) })
        })
        .await
    }

    /// The request for permission that the agent waits with.
    ///
    /// # Errors
    /// When it does not ask in time.
    pub async fn asked(&self) -> Result<Value> {
        let asked = eventually("a request for permission", self.patience, async || {
            let body = self.get("permissions").await?;
            Ok(body["permissions"].get(0).cloned().ok_or_else(|| body.to_string()))
        });
        match asked.await {
            Err(error) => Err(error.context(self.get("messages").await?)),
            asked => asked,
        }
    }

    /// Answers it with its option of this kind, such as `allow_once`.
    ///
    /// # Errors
    /// When it has no such option, or the API does not answer.
    pub async fn answer(&self, permission: &Value, kind: &str) -> Result<Answer> {
        self.api.post(&self.path("permission"), &choice(permission, kind)?).await
    }

    /// Answers whatever the agent asks for with its option of this kind; gives back the request that took the answer. One in
    /// a terminal may draw its question anew meanwhile, which is another request then.
    ///
    /// # Errors
    /// When it does not ask, or no request takes the answer in time.
    pub async fn permit(&self, kind: &str) -> Result<Value> {
        eventually("the answer is taken", self.patience, async || {
            let permission = self.asked().await?;
            let answer = self.answer(&permission, kind).await?;
            let withdrawn = matches!(answer.status.as_u16(), 404 | 409);
            Ok(if withdrawn { Err(answer.body.to_string()) } else { Ok(answer.expect(200).map(|_| permission)?) })
        })
        .await
    }

    /// Tells the agent to stop.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn cancel(&self) -> Result<Answer> {
        self.api.post(&self.path("cancel"), &json!({})).await
    }
}

/// The agent's last words.
///
/// # Errors
/// When the last word is not the agent's.
pub fn last(messages: &[Value]) -> Result<String> {
    let last = messages.last().filter(|message| message["role"] == "agent").context("the agent has not answered")?;
    Ok(last["content"].as_str().context("no content")?.to_owned())
}

/// The body that answers a request for permission with its option of this kind.
///
/// # Errors
/// When it has none.
pub fn choice(permission: &Value, kind: &str) -> Result<Value> {
    let mut options = permission["options"].as_array().into_iter().flatten();
    let option = options.find(|option| option["kind"] == kind).with_context(|| format!("no {kind}: {permission}"))?;
    Ok(json!({"id": permission["id"], "option_id": option["option_id"]}))
}
