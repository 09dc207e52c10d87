//! `/permissions`, `/permission` and `/cancel`: what the agent asks, what it is answered, and that it shall stop.

use axum::{Json, body::Body, extract::State, http::StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    App,
    problem::Problem,
    requests::{parse, pty_problem},
};
use crate::session::{
    permissions::{AnswerError, Outcome},
    transport::CancelError,
};

pub(super) async fn list(State(app): State<App>) -> Json<Value> {
    Json(json!({ "permissions": app.host.permissions.pending() }))
}

/// One of the options, or none.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Decision {
    Option { id: String, option_id: String },
    Outcome { id: String, outcome: Cancelled },
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Cancelled {
    Cancelled,
}

pub(super) async fn answer(State(app): State<App>, body: Body) -> Result<Json<Value>, Problem> {
    let (id, outcome) = match parse::<Decision>(body).await? {
        Decision::Option { id, option_id } => (id, Outcome::Selected { option_id }),
        Decision::Outcome { id, outcome: Cancelled::Cancelled } => (id, Outcome::Cancelled),
    };
    app.host.answer_permission(&id, outcome).map_err(|error| {
        let (status, slug) = match &error {
            AnswerError::Unknown => (StatusCode::NOT_FOUND, "permission-not-found"),
            AnswerError::Answered => (StatusCode::CONFLICT, "permission-answered"),
            AnswerError::NoSuchOption(_) => (StatusCode::UNPROCESSABLE_ENTITY, "no-such-option"),
        };
        Problem::new(status, slug, error)
    })?;
    Ok(Json(json!({ "ok": true })))
}

pub(super) async fn cancel(State(app): State<App>) -> Result<Json<Value>, Problem> {
    app.host.cancel().map_err(|error| match &error {
        CancelError::Idle => Problem::new(StatusCode::CONFLICT, "agent-idle", error),
        CancelError::Unsupported => Problem::new(StatusCode::CONFLICT, "cancel-unsupported", error),
        CancelError::Agent(error) => pty_problem(error),
    })?;
    Ok(Json(json!({ "ok": true })))
}
