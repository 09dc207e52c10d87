//! What we say about a `PromptPolicy`. Pure.
use crate::{
    controllers::reference::Refusal,
    status::{Saying, merge},
};
use agentapi_crds::{
    PromptPolicy,
    conditions::{ACCEPTED, READY, reason},
    prompt_policy::PromptPolicyStatus,
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
    /// It is part of the prompts.
    InPlace,
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
        State::InPlace => {
            ([accepted(), Saying::yes(READY, reason::RECONCILED, "the policy is part of the prompts")], generation)
        }
    };
    PromptPolicyStatus {
        observed_generation: generation,
        active_generation,
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
