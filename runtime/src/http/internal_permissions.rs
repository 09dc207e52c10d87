//! `POST /internal/v1/sessions/{id}/permissions`: a session pod says which permissions its agent was given or refused
//! without an answer of a client, for the audit log. May touch: `auth::session_token`, `store`.

use agentapi_crds::names::{MAX_PERMISSION_DECISIONS, MAX_PERMISSION_OPTION};
use axum::Json;
use axum::extract::{Request, State};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::App;
use super::error::Problem;
use super::extract::{self, SessionId};
use super::internal;
use crate::audit::{Entry, Origin, action};
use crate::store::TenantScope;

const MAX_BODY_BYTES: usize = 256 * 1024;
/// What ACP calls tools.
const KINDS: [&str; 10] =
    ["read", "edit", "delete", "move", "search", "execute", "think", "fetch", "switch_mode", "other"];

/// What a pod's agent was allowed or not.
#[derive(Debug, Deserialize)]
struct Decisions {
    decisions: Vec<Decided>,
}

/// One request of the agent and what became of it.
#[derive(Debug, Deserialize)]
struct Decided {
    permission: Uuid,
    /// The option, or `cancelled`.
    decision: String,
    by: By,
    /// Kind of tool.
    kind: String,
}

/// Who decided.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum By {
    /// The workspace's policy.
    Policy,
    /// Nobody in time.
    Timeout,
}

/// How many of them are in the log, from the first on. The pod sends the others again.
#[derive(Debug, Serialize)]
pub struct Taken {
    taken: usize,
}

impl Decided {
    fn validate(&self) -> Result<(), Problem> {
        if self.decision.len() > MAX_PERMISSION_OPTION || self.decision.chars().any(char::is_control) {
            return Err(Problem::invalid_field("decisions", "A decision is the id of an option, or `cancelled`."));
        }
        Ok(())
    }

    fn detail(&self) -> serde_json::Value {
        let kind = if KINDS.contains(&self.kind.as_str()) { &self.kind } else { "other" };
        json!({ "permission": self.permission, "decision": self.decision, "by": self.by, "kind": kind })
    }
}

/// Records them. What was sent before is not recorded again.
pub async fn post(State(app): State<App>, SessionId(id): SessionId, request: Request) -> Result<Json<Taken>, Problem> {
    let (parts, body) = request.into_parts();
    let peer = internal::peer(&app, &parts.extensions);
    let claims = internal::claims(&app, id, &parts.headers)?;
    let organization = internal::organization(&app, &claims).await?;
    let Decisions { decisions } = extract::read_json(&parts.headers, body, MAX_BODY_BYTES).await?;
    if decisions.len() > MAX_PERMISSION_DECISIONS {
        let detail = format!("At most {MAX_PERMISSION_DECISIONS} decisions are taken at a time.");
        return Err(Problem::invalid_field("decisions", detail));
    }
    decisions.iter().try_for_each(Decided::validate)?;
    let scope = TenantScope { platform: false, ..TenantScope::system(&organization) };
    let mut tx = app.store.tenant_tx(&scope).await?;
    let Some(session) = tx.session(id).await? else {
        return Err(Problem::no_such_session());
    };
    internal::admit(&session, &claims, peer)?;
    let (origin, target) = (Origin::system("permissions"), id.to_string());
    let mut taken = 0;
    for decision in &decisions {
        if !tx.permission_recorded(id, decision.permission).await? {
            // An image of a tenant could fill the log otherwise.
            if let Err(problem) = app.rates.admit_decision(id) {
                if taken == 0 {
                    return Err(problem);
                }
                break;
            }
            tx.audit(&Entry {
                origin: &origin,
                action: action::SESSION_PERMISSION,
                target_kind: "session",
                target_id: Some(&target),
                detail: decision.detail(),
            })
            .await?;
        }
        taken += 1;
    }
    tx.commit().await?;
    Ok(Json(Taken { taken }))
}
