//! A change that a session's pod is asked for: looked through, and in the audit log before the pod gets it.
//! May touch: the audit log, metrics.

use agentapi_prompts::Mode;
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use super::agent::MessageType;
use crate::audit::{Client, Entry, Origin};
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::Problem;
use crate::http::screening;
use crate::prompt::screening::{FindingView, Outcome, Screened};
use crate::store::sessions::Session;

/// Something that the pod is to do, as the audit log knows it.
pub(super) struct Deed<'a> {
    app: &'a App,
    caller: &'a Caller,
    origin: Origin,
    session: String,
}

impl<'a> Deed<'a> {
    pub(super) fn new(app: &'a App, caller: &'a Caller, client: &Client, session: Uuid) -> Self {
        Self { app, caller, origin: client.origin(&caller.subject), session: session.to_string() }
    }

    pub(super) async fn record(&self, action: &str, detail: Value) -> Result<(), Problem> {
        let target_id = Some(self.session.as_str());
        let entry = Entry { origin: &self.origin, action, target_kind: "session", target_id, detail };
        Ok(self.app.store.record(&self.caller.scope(), &entry).await?)
    }

    /// Looks through a message as the session's policies ask for. Gives back the body for the pod and what was cut out.
    pub(super) async fn screen(
        &self,
        session: &Session,
        content: &str,
        body: Bytes,
    ) -> Result<(Bytes, Vec<FindingView>), Problem> {
        let mode = session.prompt_screening.as_deref().map_or(Mode::default(), Mode::parse);
        let screened = Screened::of(content, mode);
        if screened.outcome == Outcome::Clean {
            return Ok((body, Vec::new()));
        }
        let entry = screening::entry(&self.origin, &screened, "message", "session", Some(&self.session));
        self.app.store.record(&self.caller.scope(), &entry).await?;
        screening::count(self.app, &screened);
        match screened.outcome {
            Outcome::Rejected => Err(screening::rejected(&screened)),
            Outcome::Redacted(text) => {
                let body = json!({ "content": text, "type": MessageType::User });
                Ok((Bytes::from(body.to_string()), screened.findings))
            }
            Outcome::Clean | Outcome::Detected => Ok((body, Vec::new())),
        }
    }

    /// Records that the pod did not do it, or that nobody knows; the row of the deed itself stays.
    pub(super) async fn close(&self, action: &str, answer: Result<Response, Problem>) -> Result<Response, Problem> {
        let status = answer.as_ref().map_or_else(Problem::status, Response::status);
        if !status.is_success()
            && let Err(error) = self.record(action, json!({ "status": status.as_u16() })).await
        {
            tracing::error!(session = self.session, action, ?error, "cannot record that the session's pod refused");
        }
        answer
    }
}
