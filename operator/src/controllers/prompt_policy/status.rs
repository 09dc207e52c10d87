//! What we say about a `PromptPolicy`. Pure.
use crate::{
    controllers::reference::Refusal,
    status::{Saying, merge},
};
use agentapi_crds::{
    PromptPolicy,
    conditions::{ACCEPTED, READY, reason},
    prompt_policy::{Effective, PromptPolicyStatus},
};
use k8s_openapi::jiff::Timestamp;

/// How far a policy has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is not allowed, or it makes no sense.
    Refused(Refusal),
    /// Its template does not parse.
    BadTemplate {
        /// Line, column and what is wrong.
        message: String,
        /// Generation whose template is in use.
        active: Option<i64>,
    },
    /// It waits for something: the reason, and what people read.
    Waiting(&'static str, String),
    /// It is part of the prompts, with this.
    InPlace(Option<Effective>),
}

/// The new status.
pub fn status(policy: &PromptPolicy, state: &State, now: Timestamp) -> PromptPolicyStatus {
    let old = policy.status.clone().unwrap_or_default();
    let generation = policy.metadata.generation;
    let accepted = || Saying::yes(ACCEPTED, reason::ACCEPTED, "the policy is allowed here");
    let (sayings, active_generation) = match state {
        State::Refused(refusal) => (
            [
                Saying::no(ACCEPTED, refusal.reason, refusal.message.clone()),
                Saying::no(READY, refusal.reason, refusal.message.clone()),
            ],
            None,
        ),
        State::BadTemplate { message, active } => {
            let kept = match active {
                Some(generation) => format!("the template of generation {generation} stays in use"),
                None => "no template is in use".to_owned(),
            };
            ([accepted(), Saying::no(READY, reason::TEMPLATE_INVALID, format!("{message}; {kept}"))], *active)
        }
        State::Waiting(why, message) => ([accepted(), Saying::no(READY, why, message.clone())], old.active_generation),
        State::InPlace(effective) => {
            let shadow = effective.as_ref().and_then(|effective| effective.shadowed_by.as_deref());
            let message = match shadow {
                Some(shadow) => format!("no session gets it: the locked policy {shadow} has its name; give it another"),
                None => "the policy is part of the prompts".to_owned(),
            };
            ([accepted(), Saying::yes(READY, reason::RECONCILED, message)], generation)
        }
    };
    let effective = match state {
        State::InPlace(effective) => effective.clone(),
        State::Refused(_) => None,
        State::BadTemplate { .. } | State::Waiting(..) => old.effective.clone(),
    };
    PromptPolicyStatus {
        observed_generation: generation,
        active_generation,
        effective,
        conditions: merge(&old.conditions, &sayings, generation, now),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::prompt_policy::validate::tests::policy;
    use serde_json::json;

    #[test]
    fn one_that_no_session_gets_says_so_and_a_bad_edit_keeps_what_is_in_use() {
        let mut policy = policy(&json!({"scope": "Global", "template": "x"}));
        let effective = Effective { lines: 1, shadowed_by: Some("Global ns/rules".into()), ..Effective::default() };
        let shown = status(&policy, &State::InPlace(Some(effective.clone())), Timestamp::UNIX_EPOCH);
        assert_eq!(shown.effective.as_ref(), Some(&effective));
        assert!(shown.conditions.iter().any(|it| it.message.contains("the locked policy Global ns/rules")));
        policy.status = Some(shown);
        let bad = State::BadTemplate { message: "m".into(), active: Some(4) };
        assert_eq!(status(&policy, &bad, Timestamp::UNIX_EPOCH).effective, Some(effective));
    }

    #[test]
    fn a_bad_template_says_which_one_stays_in_use() {
        let policy = policy(&json!({"scope": "Global", "template": "{{"}));
        let bad = |active| State::BadTemplate { message: "line 1, column 3: unexpected end".into(), active };
        let shown = status(&policy, &bad(Some(2)), Timestamp::UNIX_EPOCH);
        assert_eq!((shown.observed_generation, shown.active_generation), (Some(4), Some(2)));
        let ready = shown.conditions.iter().find(|condition| condition.type_ == READY).unwrap();
        assert_eq!(ready.message, "line 1, column 3: unexpected end; the template of generation 2 stays in use");
        let never = status(&policy, &bad(None), Timestamp::UNIX_EPOCH);
        assert!(never.conditions.iter().any(|condition| condition.message.ends_with("no template is in use")));
    }
}
