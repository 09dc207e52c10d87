//! Rows of the audit log as events of the Open Cybersecurity Schema Framework (schema.ocsf.io), for SIEMs. Which action
//! is which event is the table below. Pure.

use serde_json::{Value, json};

use super::action;
use super::chain::Row;
use crate::prompt::screening::Outcome;

/// Version of the schema.
pub const VERSION: &str = "1.3.0";

/// Event class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// 3001, category Identity & Access Management.
    AccountChange,
    /// 6003, category Application Activity.
    ApiActivity,
}

/// `activity_id` of either class; 99 is Other in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Activity(u8, &'static str);

const CREATE: Activity = Activity(1, "Create");
const UPDATE: Activity = Activity(3, "Update");
const DELETE: Activity = Activity(4, "Delete");
const PASSWORD_CHANGE: Activity = Activity(3, "Password Change");
const OTHER: Activity = Activity(99, "Other");

/// `severity_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    Informational = 1,
    Low = 2,
    Medium = 3,
    High = 4,
}

use Class::{AccountChange, ApiActivity};
use Severity::{High, Informational, Low, Medium};

/// Action, class, activity, severity, whether it succeeded. An action that is not here is Other of API Activity.
const TABLE: &[(&str, Class, Activity, Severity, bool)] = &[
    (action::SESSION_CREATE, ApiActivity, CREATE, Informational, true),
    (action::SESSION_DELETE, ApiActivity, DELETE, Informational, true),
    (action::SESSION_FAIL, ApiActivity, UPDATE, Low, false),
    (action::SESSION_SUSPEND, ApiActivity, UPDATE, Informational, true),
    (action::SESSION_WAKE, ApiActivity, UPDATE, Informational, true),
    (action::SESSION_MESSAGE, ApiActivity, UPDATE, Informational, true),
    (action::SESSION_MESSAGE_FAIL, ApiActivity, UPDATE, Low, false),
    (action::SESSION_UPLOAD, ApiActivity, UPDATE, Informational, true),
    (action::SESSION_UPLOAD_FAIL, ApiActivity, UPDATE, Low, false),
    (action::SESSION_PERMISSION, ApiActivity, UPDATE, Low, true),
    (action::SESSION_PERMISSION_FAIL, ApiActivity, UPDATE, Low, false),
    (action::SESSION_CANCEL, ApiActivity, UPDATE, Informational, true),
    (action::SESSION_CANCEL_FAIL, ApiActivity, UPDATE, Informational, false),
    (action::PROMPT_SCREEN, ApiActivity, OTHER, Medium, true),
    (action::OAUTH_BEGIN, ApiActivity, CREATE, Informational, true),
    (action::OAUTH_GRANT, ApiActivity, CREATE, Low, true),
    (action::OAUTH_REFUSE, ApiActivity, CREATE, Low, false),
    (action::OAUTH_REFRESH, ApiActivity, UPDATE, Informational, true),
    (action::OAUTH_LOSE, ApiActivity, DELETE, Low, true),
    (action::OAUTH_REVOKE, ApiActivity, DELETE, Low, true),
    (action::OAUTH_REGISTER, ApiActivity, CREATE, Low, true),
    (action::OAUTH_RESEAL, ApiActivity, UPDATE, Informational, true),
    (action::USER_CREATE, AccountChange, CREATE, Informational, true),
    (action::USER_UPDATE, AccountChange, OTHER, Low, true),
    (action::ACCESS_REFUSE, ApiActivity, OTHER, Medium, false),
    ("organization.create", ApiActivity, CREATE, Low, true),
    ("organization.update", ApiActivity, UPDATE, Low, true),
    ("organization.repair", ApiActivity, UPDATE, Medium, true),
    ("organization.delete", ApiActivity, DELETE, Medium, true),
    ("organization.rotate-data-key", ApiActivity, UPDATE, Low, true),
    ("organization.offboard.refuse", ApiActivity, UPDATE, Low, true),
    ("organization.offboard.drain", ApiActivity, UPDATE, Low, true),
    ("organization.offboard.namespace", ApiActivity, DELETE, Low, true),
    ("organization.offboard.revoke", ApiActivity, DELETE, Low, true),
    ("organization.offboard.keys", ApiActivity, DELETE, Medium, true),
    ("organization.offboard.rows", ApiActivity, DELETE, Medium, true),
    ("organization.rotate-credentials", AccountChange, PASSWORD_CHANGE, Low, true),
    ("organization.isolation-breached", ApiActivity, OTHER, High, false),
    ("workspace.create", ApiActivity, CREATE, Low, true),
    ("workspace.update", ApiActivity, UPDATE, Low, true),
    ("workspace.delete", ApiActivity, DELETE, Low, true),
    (action::MCP_CONNECTION_CREATE, ApiActivity, CREATE, Low, true),
    (action::MCP_CONNECTION_UPDATE, ApiActivity, UPDATE, Low, true),
    (action::MCP_CONNECTION_DELETE, ApiActivity, DELETE, Low, true),
    (action::MCP_CONNECTION_TEST, ApiActivity, OTHER, Low, true),
    (action::MCP_CONNECT, ApiActivity, CREATE, Informational, true),
    (action::MCP_DISCONNECT, ApiActivity, DELETE, Informational, true),
    (action::MCP_TOOL_CALL, ApiActivity, OTHER, Informational, true),
    (action::MCP_TOOL_CALL_FAIL, ApiActivity, OTHER, Low, false),
    (action::MCP_QUARANTINE, ApiActivity, UPDATE, Medium, true),
    ("promptpolicy.create", ApiActivity, CREATE, Low, true),
    ("promptpolicy.update", ApiActivity, UPDATE, Low, true),
    ("promptpolicy.delete", ApiActivity, DELETE, Low, true),
];

/// The event that a row is. `unmapped.audit` is the whole row, so that the chain can be checked from the events too.
pub fn event(row: &Row) -> Value {
    let known = TABLE.iter().find(|(action, ..)| *action == row.action);
    let (class, activity, severity, success) = known
        .map_or((ApiActivity, OTHER, Low, true), |&(_, class, activity, severity, ok)| (class, activity, severity, ok));
    // One action for what screening finds; whether the text went on is in its detail.
    let refused = row.action == action::PROMPT_SCREEN && row.detail["outcome"] == Outcome::Rejected.as_str();
    let success = success && !refused;
    let (class_uid, class_name, category_uid, category_name) = match class {
        AccountChange => (3001, "Account Change", 3, "Identity & Access Management"),
        ApiActivity => (6003, "API Activity", 6, "Application Activity"),
    };
    let name = row.actor.split_once(':').map_or(row.actor.as_str(), |(_, name)| name);
    // User or System.
    let actor_type = if row.actor.starts_with("user:") { 1 } else { 3 };
    let mut event = json!({
        "metadata": {
            "version": VERSION,
            "product": { "name": "AgentAPI", "vendor_name": "agentapi.dev" },
            "uid": format!("{}-{}", row.org_id, row.seq),
            "sequence": row.seq,
            "tenant_uid": row.org_id,
            "original_time": row.at,
        },
        "time": row.at.as_millisecond(),
        "class_uid": class_uid, "class_name": class_name,
        "category_uid": category_uid, "category_name": category_name,
        "activity_id": activity.0, "activity_name": activity.1,
        "type_uid": class_uid * 100 + u32::from(activity.0), "type_name": format!("{class_name}: {}", activity.1),
        "severity_id": severity as u8,
        "status_id": if success { 1 } else { 2 }, "status": if success { "Success" } else { "Failure" },
        "actor": { "user": {
            "name": name, "type_id": actor_type, "org": { "uid": row.org_id, "name": row.org_slug },
        } },
        "api": { "operation": row.action, "service": { "name": "agentapi" } },
        // Required; of the platform itself there is a name and no address.
        "src_endpoint": row.source_ip.as_ref().map_or_else(|| json!({ "name": row.db_role }), |ip| json!({ "ip": ip })),
        "unmapped": { "audit": row },
    });
    if let Some(request) = &row.request_id {
        event["api"]["request"] = json!({ "uid": request });
        event["metadata"]["correlation_uid"] = request.as_str().into();
    }
    if let Some(agent) = &row.user_agent {
        event["http_request"] = json!({ "user_agent": agent });
    }
    match class {
        AccountChange => event["user"] = json!({ "name": row.target_id, "type_id": 1 }),
        ApiActivity => event["resources"] = json!([{ "type": row.target_kind, "name": row.target_id }]),
    }
    event
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::audit::chain::tests::row;

    #[test]
    fn an_event_has_what_its_class_requires() {
        for (action, class, activity, ..) in TABLE {
            let mut row = row(1);
            (*action).clone_into(&mut row.action);
            row.source_ip = Some("203.0.113.7".into());
            row.request_id = Some("r".into());
            let event = event(&row);
            let uid = if *class == AccountChange { 3001 } else { 6003 };
            assert_eq!(event["class_uid"], uid, "{action}");
            assert_eq!(event["category_uid"], uid / 1000);
            assert_eq!(event["type_uid"], uid * 100 + u32::from(activity.0));
            assert_eq!(event["src_endpoint"]["ip"], "203.0.113.7");
            assert_eq!(event["api"]["operation"], *action);
            assert_eq!(event["api"]["request"]["uid"], "r");
            assert_eq!(event["time"], 1000);
            let required = if *class == AccountChange { "user" } else { "api" };
            for field in ["metadata", "actor", "severity_id", "activity_id", "status_id", required] {
                assert!(!event[field].is_null(), "{action} lacks {field}");
            }
        }
    }

    #[test]
    fn an_action_is_there_once_and_a_breach_stands_out() {
        let actions: std::collections::BTreeSet<_> = TABLE.iter().map(|(action, ..)| action).collect();
        assert_eq!(actions.len(), TABLE.len());
        let mut row = row(1);
        row.action = "organization.isolation-breached".into();
        let event = event(&row);
        assert_eq!((&event["severity_id"], &event["status"]), (&json!(4), &json!("Failure")));
    }

    #[test]
    fn a_text_that_screening_let_through_has_another_status_than_one_that_it_refused() {
        let mut row = row(1);
        action::PROMPT_SCREEN.clone_into(&mut row.action);
        for (outcome, status) in [(Outcome::Detected, "Success"), (Outcome::Rejected, "Failure")] {
            row.detail = json!({ "outcome": outcome.as_str() });
            assert_eq!(event(&row)["status"], status);
        }
    }

    #[test]
    fn an_action_of_tomorrow_is_an_event_too_and_the_row_stays_whole() {
        let mut row = row(1);
        row.action = "something.new".into();
        let event = event(&row);
        assert_eq!((&event["activity_id"], &event["type_uid"]), (&json!(99), &json!(600_399)));
        assert_eq!(serde_json::from_value::<Row>(event["unmapped"]["audit"].clone()).unwrap(), row);
        assert_eq!(event["actor"]["user"]["name"], "1");
    }
}
