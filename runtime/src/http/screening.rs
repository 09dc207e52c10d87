//! Screening of users' texts on their way to an agent: what was found is counted and recorded, whatever becomes of it.
//! May touch: the audit log, metrics.

use http::StatusCode;
use serde_json::json;

use super::App;
use super::error::Problem;
use crate::audit::{Entry, Origin, action};
use crate::prompt::PromptError;
use crate::prompt::screening::{FindingView, Screened};

/// The row that says what was found in a text; nothing of the text itself.
pub(super) fn entry<'a>(
    origin: &'a Origin,
    screened: &Screened,
    place: &str,
    kind: &'a str,
    target: Option<&'a str>,
) -> Entry<'a> {
    let detail = json!({
        "in": place,
        "mode": screened.mode.as_str(),
        "outcome": screened.outcome.as_str(),
        "findings": screened.findings,
    });
    Entry { origin, action: action::PROMPT_SCREEN, target_kind: kind, target_id: target, detail }
}

/// Counts what was found.
pub(super) fn count(app: &App, screened: &Screened) {
    for finding in &screened.findings {
        app.metrics.prompt_finding(finding.family(), screened.outcome.as_str());
    }
}

/// 422: the text is refused.
pub(super) fn rejected(screened: &Screened) -> Problem {
    let first = screened.findings.first();
    let place = first.map(FindingView::place).unwrap_or_default();
    let detail = format!(
        "The text looks like prompt injection ({place}), and a policy of this workspace refuses that. Change it and \
         send it again; if it is meant well, your administrator can change the policy."
    );
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "prompt-rejected", "Prompt rejected", detail)
        .with("family", first.map(FindingView::family).unwrap_or_default())
        .with("findings", json!(screened.findings))
}

impl From<PromptError> for Problem {
    fn from(error: PromptError) -> Self {
        match error {
            PromptError::Store(error) => error.into(),
            PromptError::Compose(error) => {
                tracing::error!(%error, "a session can't be started without its prompt policies");
                let detail = format!("No session is started without its prompt policies. {error}.");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "prompt-policy-failed", "Prompt policy failed", detail)
            }
        }
    }
}
