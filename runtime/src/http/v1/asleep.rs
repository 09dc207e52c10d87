//! A suspended session from outside: what it answers without a pod, and how a request that needs one wakes it. Messages
//! and uploads wake. What clients ask all the time (`/status`, `/messages`, `/events`) does not, or no session would ever
//! stay suspended. May touch: `store`, `lifecycle`, the session's pod through `proxy`.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::agent::{READ_TIMEOUT, START_PATIENCE, START_POLL, StatusBody, starting, target};
use super::create_session::quota_problem;
use super::deed::Deed;
use super::sessions::load;
use super::transcript;
use crate::audit::Client;
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::Problem;
use crate::http::proxy::{Call, forward};
use crate::lifecycle::Woken;
use crate::pods::agent::Target;
use crate::store::messages::Message;
use crate::store::sessions::{Phase, Session};

/// A request waits this long for the session that it has woken: for a node, an image, the agent's start.
const WAKE_PATIENCE: Duration = Duration::from_secs(60);
/// The agent shows what it went on with, and takes messages when that is done.
const STABLE_PATIENCE: Duration = Duration::from_secs(15);
/// After this long a session that is woken is looked at less often.
const QUICK: Duration = Duration::from_secs(3);
const SLOW_POLL: Duration = Duration::from_millis(500);
/// How often a follower of a suspended session looks whether somebody has woken it: soon after it came, and later.
const FOLLOW_POLL: Duration = Duration::from_secs(1);
const FOLLOW_SLOW_POLL: Duration = Duration::from_secs(5);
/// So many polls are quick ones; a comment between two that are slow keeps the connection open.
const QUICK_POLLS: u32 = 15;
/// Then the stream ends, and the client comes back with a token that is still good.
const MAX_POLLS: u32 = 75;

/// What needs a pod and does not wake.
pub(super) fn suspended() -> Problem {
    let detail = "The session is suspended, since nobody has used it for a while. A message wakes it.";
    Problem::new(StatusCode::CONFLICT, "session-suspended", "Session is suspended", detail)
}

fn not_woken(session: &Session) -> Problem {
    let why = session.error.as_deref().unwrap_or("the cluster did not say why");
    let detail = format!("The session could not be woken: {why}. It stays suspended, and nothing of it is lost.");
    Problem::unavailable("session-not-woken", detail, 10)
}

fn no_workspace() -> Problem {
    let detail = "The session's workspace was deleted, so the session cannot be woken. Its messages can still be read.";
    Problem::new(StatusCode::CONFLICT, "session-over", "Session is over", detail)
}

/// The session with a pod, or over. One that is suspended is woken first. A pod that is used is not taken away.
pub(super) async fn awake(app: &App, caller: &Caller, client: &Client, id: Uuid) -> Result<Session, Problem> {
    let began = Instant::now();
    let (mut slept, mut woken) = (false, false);
    loop {
        let mut tx = app.store.tenant_tx(&caller.scope()).await?;
        let session = tx.session(id).await?.ok_or_else(Problem::no_such_session)?;
        let in_use = session.phase == Phase::Running && tx.session_in_use(id).await?;
        tx.commit().await?;
        slept |= session.phase.is_asleep() || session.was_suspended;
        match session.phase {
            Phase::Running if in_use => {
                if !slept {
                    return Ok(session);
                }
                wait_until_stable(app, &session).await;
                // Once more: it may have been suspended while it was waited for.
                slept = false;
                continue;
            }
            Phase::Suspended if woken => return Err(not_woken(&session)),
            Phase::Suspended => {
                let origin = client.origin(&caller.subject);
                let scope = caller.scope();
                match app.lifecycle.wake(&scope, &caller.organization, &session, &origin).await? {
                    Woken::Starts => woken = true,
                    Woken::Otherwise => {}
                    Woken::Full(exceeded) => {
                        app.metrics.quota_refused(exceeded.quota);
                        return Err(quota_problem(&exceeded));
                    }
                    Woken::NoWorkspace => return Err(no_workspace()),
                }
            }
            Phase::Running | Phase::Pending | Phase::Starting | Phase::Suspending => {}
            Phase::Terminating | Phase::Ended | Phase::Failed => return Ok(session),
        }
        let patience = if slept { WAKE_PATIENCE } else { START_PATIENCE };
        if began.elapsed() >= patience || app.leaving.is_cancelled() {
            return Err(starting());
        }
        sleep(if slept && began.elapsed() > QUICK { SLOW_POLL } else { START_POLL }).await;
    }
}

/// The session whose pod gets next what is recorded here. It may be suspended while it is looked at, and is woken then too.
pub(super) async fn begun(deed: &Deed<'_>, client: &Client, action: &str, detail: &Value) -> Result<Session, Problem> {
    loop {
        let session = awake(deed.app, deed.caller, client, deed.id).await?;
        target(&session)?;
        if deed.begin(action, detail.clone()).await? {
            return Ok(session);
        }
    }
}

/// A message right after the start would be refused: whoever sent it was told that the agent is stable.
async fn wait_until_stable(app: &App, session: &Session) {
    let (Some(pod), Some(ip)) = (session.pod_name.as_deref(), session.pod_ip.as_deref()) else { return };
    let target = Target { session: session.id, pod, ip };
    let stable = async {
        while !matches!(app.agents.is_stable(target).await, Ok(true)) {
            sleep(START_POLL).await;
        }
    };
    if tokio::time::timeout(STABLE_PATIENCE, stable).await.is_err() {
        tracing::warn!(session = %session.id, "the woken agent is not stable; it gets the message all the same");
    }
}

/// What its agent would say.
pub(super) fn status(session: Session) -> Response {
    let Session { agent_type, transport, .. } = session;
    Json(StatusBody { status: "stable".to_owned(), agent_type, transport }).into_response()
}

fn event(name: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

/// A message of the conversation for a client that has seen nothing yet. Without ids: there is no pod to come back to
/// with them.
fn update(message: Message) -> Bytes {
    let Message { id, role, content, time } = message;
    event("message_update", &json!({ "id": id, "role": role, "message": content, "time": time }))
}

/// Follows a session that nobody has woken yet, and then its pod.
pub(super) async fn follow(
    app: App,
    caller: Caller,
    session: Session,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let new = !headers.contains_key("last-event-id");
    let pages = if new { Some(transcript::pages(&app, &caller, &session).await?) } else { None };
    let id = session.id;
    let stream = async_stream::stream! {
        let open = app.metrics.stream();
        yield Ok::<_, axum::Error>(Bytes::from_static(b": the session is suspended\n\n"));
        if let Some(pages) = pages {
            for await page in pages {
                let Ok(page) = page else { return };
                for message in page {
                    yield Ok(update(message));
                }
            }
            yield Ok(event("status_change", &json!({ "status": "stable", "agent_type": session.agent_type })));
        }
        let mut polls = 0;
        let session = loop {
            tokio::select! {
                () = app.closing.cancelled() => {
                    yield Ok(Bytes::from_static(b": this server is shutting down\nretry: 200\n\n"));
                    return;
                }
                () = sleep(if polls < QUICK_POLLS { FOLLOW_POLL } else { FOLLOW_SLOW_POLL }) => {}
            }
            match load(&app, &caller, id).await {
                Ok(session) if session.phase == Phase::Running => break session,
                Ok(session) if session.phase.is_asleep() || session.phase == Phase::Starting => {}
                // Postgres may be back in a moment; a session that is not there any more is not.
                Err(problem) if problem.status().is_server_error() => {}
                Ok(_) | Err(_) => return,
            }
            polls += 1;
            if polls >= QUICK_POLLS {
                yield Ok(Bytes::from_static(b": keep-alive\n\n"));
            }
            if polls >= MAX_POLLS {
                return;
            }
        };
        // The pod's own stream is counted by itself.
        drop(open);
        let (Some(pod), Some(ip)) = (session.pod_name.as_deref(), session.pod_ip.as_deref()) else { return };
        let (target, timeout) = (Target { session: id, pod, ip }, READ_TIMEOUT);
        let call = Call { target, method: Method::GET, path: "/events", headers: &headers, body: None, timeout };
        // A pod that does not answer ends the stream, and the client comes back.
        if let Ok(response) = forward(&app, call).await
            && response.status().is_success()
        {
            let mut rest = response.into_body().into_data_stream();
            while let Some(chunk) = rest.next().await {
                yield chunk;
            }
        }
    };
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // Proxies that buffer would hold events back.
        (http::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}
