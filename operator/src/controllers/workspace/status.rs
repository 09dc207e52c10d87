//! What we say about a Workspace. Pure.
use super::apply::Pool;
use crate::{
    controllers::reference::Refusal,
    status::{Saying, merge, without_unsaid},
};
use agentapi_crds::{
    Workspace,
    conditions::{ACCEPTED, EGRESS_ALLOWED, READY, reason},
    workspace::WorkspaceStatus,
};
use k8s_openapi::jiff::Timestamp;

/// How far a Workspace has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is not allowed, or it makes no sense.
    Refused(Refusal),
    /// It is allowed and waits for something.
    Waiting(&'static str, String),
    /// Its objects are in place.
    InPlace {
        /// The warm pods.
        pool: Pool,
        /// Sessions that have a pod.
        sessions: usize,
        /// What Postgres said, if it did not take the row.
        database: Option<String>,
        /// Egress rules that are not in force, and why.
        egress: Vec<String>,
    },
    /// It is being deleted.
    Deleting(String),
}

/// The new status.
pub fn status(workspace: &Workspace, state: &State, now: Timestamp) -> WorkspaceStatus {
    let old = workspace.status.clone().unwrap_or_default();
    let generation = workspace.metadata.generation;
    let accepted = || Saying::yes(ACCEPTED, reason::ACCEPTED, "the Organization admits this Workspace");
    let (accepted, ready) = match state {
        State::Refused(refusal) => (
            Saying::no(ACCEPTED, refusal.reason, refusal.message.clone()),
            Saying::no(READY, refusal.reason, refusal.message.clone()),
        ),
        State::Waiting(why, message) => (accepted(), Saying::no(READY, why, message.clone())),
        State::InPlace { pool, database, egress, .. } => {
            (accepted(), ready(workspace, pool, database.as_deref(), egress))
        }
        State::Deleting(left) => (accepted(), Saying::no(READY, reason::DELETING, left.clone())),
    };
    let (warm_pods, sessions, id) = match state {
        State::InPlace { pool, sessions, database, .. } => (
            Some(count(pool.ready)),
            Some(count(*sessions)),
            if database.is_none() { workspace.metadata.uid.clone() } else { old.workspace_id },
        ),
        State::Refused(_) => (Some(0), None, None),
        State::Waiting(..) | State::Deleting(_) => (old.warm_pods, old.sessions, old.workspace_id),
    };
    let mut sayings = vec![accepted, ready];
    if let State::InPlace { egress, .. } = state {
        sayings.push(egress_allowed(egress));
    }
    WorkspaceStatus {
        observed_generation: generation,
        workspace_id: id,
        warm_pods,
        sessions,
        // Where no policy is in place, no rule is in force.
        conditions: merge(&without_unsaid(&old.conditions, &[EGRESS_ALLOWED], &sayings), &sayings, generation, now),
    }
}

fn egress_allowed(refused: &[String]) -> Saying {
    if refused.is_empty() {
        return Saying::yes(EGRESS_ALLOWED, reason::ACCEPTED, "every rule of spec.egress is in force");
    }
    Saying::no(EGRESS_ALLOWED, reason::EGRESS_NOT_ALLOWED, refused.join("; "))
}

fn ready(workspace: &Workspace, pool: &Pool, database: Option<&str>, egress: &[String]) -> Saying {
    if let Some(database) = database {
        return Saying::no(READY, reason::DATABASE_UNAVAILABLE, database);
    }
    if !egress.is_empty() {
        return Saying::no(READY, reason::EGRESS_NOT_ALLOWED, egress.join("; "));
    }
    let wanted = usize::try_from(workspace.spec.warm_pool).unwrap_or_default();
    let message = format!("{} of {wanted} warm pods are ready", pool.ready.min(wanted));
    if pool.ready >= wanted {
        return Saying::yes(READY, reason::RECONCILED, message);
    }
    let message = match &pool.trouble {
        Some(trouble) => format!("{message}; {trouble}"),
        None => message,
    };
    Saying::no(READY, reason::PROGRESSING, message)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::workspace::tests::web;

    fn shown(state: &State) -> Vec<String> {
        let status = status(&web(), state, Timestamp::UNIX_EPOCH);
        status.conditions.iter().map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message)).collect()
    }

    #[test]
    fn every_state_says_what_it_is() {
        let in_place = |ready, trouble: Option<&str>, database: Option<&str>| State::InPlace {
            pool: Pool { ready, trouble: trouble.map(Into::into) },
            sessions: 1,
            database: database.map(Into::into),
            egress: Vec::new(),
        };
        let cut = State::InPlace {
            pool: Pool { ready: 2, trouble: None },
            sessions: 0,
            database: None,
            egress: vec!["egress[0] (10.0.0.0/8) is not in spec.allowedEgress of the Organization".into()],
        };
        let refusal = Refusal::new(reason::NAMESPACE_NOT_ALLOWED, "not admitted");
        insta::assert_yaml_snapshot!([
            shown(&State::Refused(refusal)),
            shown(&State::Waiting(reason::ORGANIZATION_NOT_READY, "the namespace is on its way".into())),
            shown(&in_place(1, Some("pod w-web-1: ErrImagePull: no such image"), None)),
            shown(&in_place(2, None, None)),
            shown(&in_place(2, None, Some("Postgres can't be reached"))),
            shown(&cut),
            shown(&State::Deleting("waits for 2 pods".into())),
        ]);
    }

    #[test]
    fn a_refused_workspace_has_no_id() {
        let mut workspace = web();
        let pool = Pool { ready: 2, trouble: None };
        let in_place = State::InPlace { pool, sessions: 0, database: None, egress: Vec::new() };
        workspace.status = Some(status(&workspace, &in_place, Timestamp::UNIX_EPOCH));
        assert_eq!(workspace.status.as_ref().unwrap().workspace_id, workspace.metadata.uid);
        let refused =
            status(&workspace, &State::Refused(Refusal::new(reason::NAME_CONFLICT, "")), Timestamp::UNIX_EPOCH);
        assert_eq!(refused.workspace_id, None);
    }

    #[test]
    fn where_no_policy_is_in_place_no_rule_is_said_to_be_in_force() {
        let mut workspace = web();
        let pool = Pool { ready: 2, trouble: None };
        let in_place = State::InPlace { pool, sessions: 0, database: None, egress: Vec::new() };
        workspace.status = Some(status(&workspace, &in_place, Timestamp::UNIX_EPOCH));
        let says = |workspace: &Workspace, state: &State| {
            let conditions = status(workspace, state, Timestamp::UNIX_EPOCH).conditions;
            conditions.iter().any(|condition| condition.type_ == EGRESS_ALLOWED)
        };
        assert!(says(&workspace, &in_place));
        for state in [
            State::Refused(Refusal::new(reason::NAME_CONFLICT, "")),
            State::Waiting(reason::ORGANIZATION_NOT_READY, String::new()),
            State::Deleting(String::new()),
        ] {
            assert!(!says(&workspace, &state), "{state:?}");
        }
    }
}
