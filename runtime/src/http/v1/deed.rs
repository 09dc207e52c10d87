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
    pub(super) app: &'a App,
    pub(super) caller: &'a Caller,
    pub(super) id: Uuid,
    origin: Origin,
    session: String,
}

impl<'a> Deed<'a> {
    pub(super) fn new(app: &'a App, caller: &'a Caller, client: &Client, session: Uuid) -> Self {
        Self { app, caller, origin: client.origin(&caller.subject), id: session, session: session.to_string() }
    }

    fn entry<'b>(&'b self, action: &'b str, detail: Value) -> Entry<'b> {
        let target_id = Some(self.session.as_str());
        Entry { origin: &self.origin, action, target_kind: "session", target_id, detail }
    }

    /// Records what the pod gets next. False: the session has no pod any more, and nothing is recorded.
    pub(super) async fn begin(&self, action: &str, detail: Value) -> Result<bool, Problem> {
        let mut tx = self.app.store.tenant_tx(&self.caller.scope()).await?;
        // Holds the row: whoever wants to suspend the session waits for the end of this.
        if !tx.session_in_use(self.id).await? {
            return Ok(false);
        }
        tx.audit(&self.entry(action, detail)).await?;
        // And sees then that it is in use now: the log may have been slow.
        tx.session_in_use(self.id).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn record(&self, action: &str, detail: Value) -> Result<(), Problem> {
        Ok(self.app.store.record(&self.caller.scope(), &self.entry(action, detail)).await?)
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
