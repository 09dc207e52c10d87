//! `/v1/sessions/{id}/{permissions,permission,cancel}`: what the agent asks before it uses a tool, the answer, and the
//! end of a turn. Answers and cancels are in the audit log before the pod gets them. May touch: the session's pod.

use agentapi_crds::names::MAX_PERMISSION_OPTION;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::agent::{Ask, ask, gone, settled, target};
use super::deed::Deed;
use crate::audit::{Client, action};
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::{Problem, ProblemBody};
use crate::http::extract::{MAX_JSON_BYTES, SessionId, read_json};

/// A tool that the agent wants to use.
#[derive(Debug, Serialize, ToSchema)]
pub struct ToolCallView {
    /// What it would do, for people.
    #[schema(example = "Write note.txt")]
    title: String,
    /// `read`, `edit`, `delete`, `move`, `search`, `execute`, `think`, `fetch` or `other`.
    #[schema(example = "edit")]
    kind: String,
    /// What the tool would get, unless it is long.
    raw_input: Option<Value>,
}

/// One way to answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct PermissionOption {
    /// What to answer with.
    #[schema(example = "allow-once")]
    option_id: String,
    /// For people.
    #[schema(example = "Yes")]
    name: String,
    /// `allow_once`, `allow_always`, `reject_once` or `reject_always`.
    #[schema(example = "allow_once")]
    kind: String,
}

/// A request for permission that waits for an answer; also the data of the event `permission`.
#[derive(Debug, Serialize, ToSchema)]
pub struct PermissionView {
    /// Id of the request.
    id: Uuid,
    /// What it is about.
    tool_call: ToolCallView,
    /// What can be answered.
    options: Vec<PermissionOption>,
}

/// What the agent waits for.
#[derive(Debug, Serialize, ToSchema)]
pub struct PermissionsBody {
    /// Oldest first.
    permissions: Vec<PermissionView>,
}

/// The answer to a request: one of its options, or none.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PermissionAnswer {
    /// Id of the request.
    id: Uuid,
    /// The option. Either this or `outcome`.
    #[serde(default)]
    option_id: Option<String>,
    /// None of the options: the tool is not used.
    #[serde(default)]
    outcome: Option<PermissionOutcome>,
}

/// No option.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PermissionOutcome {
    /// The tool is not used.
    Cancelled,
}

/// It is done.
#[derive(Debug, Serialize, ToSchema)]
pub struct Done {
    /// `true`.
    ok: bool,
}

impl PermissionAnswer {
    /// As the audit log has it.
    fn decision(&self) -> Result<&str, Problem> {
        match (&self.option_id, self.outcome) {
            (None, Some(PermissionOutcome::Cancelled)) => Ok("cancelled"),
            (Some(option), None) if option.len() <= MAX_PERMISSION_OPTION && !option.chars().any(char::is_control) => {
                Ok(option)
            }
            (Some(_), None) => Err(Problem::invalid_field("option_id", "It is not one of the options of the request.")),
            _ => {
                let detail =
                    "An answer has either an `option_id`, one of the request's options, or the `outcome` `cancelled`.";
                Err(Problem::invalid_field("option_id", detail))
            }
        }
    }
}

/// What the agent asks for and has no answer to yet.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/permissions", operation_id = "listPermissions", tag = "agent", params(("id" = Uuid, Path, description = "Session")),
    responses(
        (status = 200, body = PermissionsBody),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    SessionId(id): SessionId,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let session = settled(&app, &caller, id).await?;
    ask(&app, target(&session)?, &headers, Ask::get("/permissions")).await
}

/// Answers a request for permission, once.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/permission", operation_id = "answerPermission", tag = "agent", params(("id" = Uuid, Path, description = "Session")),
    request_body = PermissionAnswer,
    responses(
        (status = 200, body = Done),
        (status = 404, description = "There is no such session, or its agent has not asked for this.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = 409, description = "The request has an answer already, or its time is over.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn answer(
    State(app): State<App>,
    caller: Caller,
    client: Client,
    SessionId(id): SessionId,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let session = settled(&app, &caller, id).await?;
    let answer: PermissionAnswer = read_json(&headers, body, MAX_JSON_BYTES).await?;
    let detail = json!({ "permission": answer.id, "decision": answer.decision()? });
    let target = target(&session)?;
    let deed = Deed::new(&app, &caller, &client, id);
    if !deed.begin(action::SESSION_PERMISSION, detail).await? {
        return Err(gone(&app, &caller, id).await);
    }
    let answered = match answer.option_id {
        Some(option) => json!({ "id": answer.id, "option_id": option }),
        None => json!({ "id": answer.id, "outcome": "cancelled" }),
    };
    let (headers, body) = json_body(&answered);
    let answer = ask(&app, target, &headers, Ask::post("/permission", body)).await;
    deed.close(action::SESSION_PERMISSION_FAIL, answer).await
}

/// Stops what the agent is doing. Its turn ends soon after; then its status is `stable`.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/cancel", operation_id = "cancelTurn", tag = "agent", params(("id" = Uuid, Path, description = "Session")),
    responses(
        (status = 200, body = Done),
        (status = 409, description = "The agent is doing nothing, or it can't be stopped in this way.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn cancel(
    State(app): State<App>,
    caller: Caller,
    client: Client,
    SessionId(id): SessionId,
) -> Result<Response, Problem> {
    let session = settled(&app, &caller, id).await?;
    let target = target(&session)?;
    let deed = Deed::new(&app, &caller, &client, id);
    if !deed.begin(action::SESSION_CANCEL, json!({})).await? {
        return Err(gone(&app, &caller, id).await);
    }
    let (headers, body) = json_body(&json!({}));
    let answer = ask(&app, target, &headers, Ask::post("/cancel", body)).await;
    deed.close(action::SESSION_CANCEL_FAIL, answer).await
}

fn json_body(body: &Value) -> (HeaderMap, Body) {
    let bytes = body.to_string();
    let length = HeaderValue::from(bytes.len());
    let kind = HeaderValue::from_static("application/json");
    (HeaderMap::from_iter([(CONTENT_TYPE, kind), (CONTENT_LENGTH, length)]), Body::from(bytes))
}
