//! Merging conditions: `lastTransitionTime` moves only when `status` changes, and an equal status is
//! not written at all. Pure.
use agentapi_crds::conditions::reason;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// What we want to say in one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saying {
    /// Type of the condition.
    pub kind: &'static str,
    /// `None`: not known yet.
    pub status: Option<bool>,
    /// One of [`agentapi_crds::conditions::reason`].
    pub reason: &'static str,
    /// What people read.
    pub message: String,
}

impl Saying {
    /// The condition holds.
    pub fn yes(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: Some(true), reason, message: message.into() }
    }

    /// The condition does not hold.
    pub fn no(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: Some(false), reason, message: message.into() }
    }

    /// It is not known yet.
    pub fn unknown(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: None, reason, message: message.into() }
    }

    fn status_word(&self) -> &'static str {
        match self.status {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        }
    }
}

/// The new list of conditions: those of `sayings`, in their order. Conditions of types that we do
/// not speak of belong to somebody else and stay.
pub fn merge(old: &[Condition], sayings: &[Saying], generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    let mut merged: Vec<Condition> = sayings
        .iter()
        .map(|saying| {
            let before = old.iter().find(|condition| condition.type_ == saying.kind);
            let status = saying.status_word();
            let since = match before {
                Some(before) if before.status == status => before.last_transition_time.clone(),
                _ => Time(now),
            };
            Condition {
                type_: saying.kind.to_owned(),
                status: status.to_owned(),
                reason: saying.reason.to_owned(),
                message: saying.message.clone(),
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect();
    merged.extend(old.iter().filter(|condition| !sayings.iter().any(|saying| saying.kind == condition.type_)).cloned());
    merged
}

/// The conditions without those of `ours` that we do not speak of now: what they said holds no more.
pub fn without_unsaid(old: &[Condition], ours: &[&str], sayings: &[Saying]) -> Vec<Condition> {
    let holds =
        |it: &&Condition| !ours.contains(&it.type_.as_str()) || sayings.iter().any(|saying| saying.kind == it.type_);
    old.iter().filter(holds).cloned().collect()
}

/// Conditions whose status or reason changed: the only thing that is worth an Event.
pub fn transitions<'a>(old: &[Condition], new: &'a [Condition]) -> Vec<&'a Condition> {
    new.iter()
        .filter(|condition| {
            !old.iter().any(|before| {
                before.type_ == condition.type_
                    && before.status == condition.status
                    && before.reason == condition.reason
            })
        })
        .collect()
}

/// Something to look at, and not just work that is under way?
pub fn is_worrying(condition: &Condition) -> bool {
    condition.status == "False"
        && ![reason::PROGRESSING, reason::ORGANIZATION_NOT_READY, reason::DELETING, reason::NOT_PINNED]
            .contains(&condition.reason.as_str())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use agentapi_crds::conditions::READY;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn transition_time_moves_only_when_the_status_changes() {
        let first = merge(&[], &[Saying::no(READY, reason::PROGRESSING, "1 of 2")], Some(1), at(10));
        let same = merge(&first, &[Saying::no(READY, reason::PROGRESSING, "2 of 2")], Some(2), at(20));
        assert_eq!(same[0].last_transition_time, Time(at(10)));
        assert_eq!(same[0].message, "2 of 2");
        assert_eq!(same[0].observed_generation, Some(2));
        let ready = merge(&same, &[Saying::yes(READY, reason::RECONCILED, "")], Some(2), at(30));
        assert_eq!(ready[0].last_transition_time, Time(at(30)));
    }

    #[test]
    fn an_equal_saying_gives_an_equal_list_so_that_nothing_is_written() {
        let sayings = [Saying::yes(READY, reason::RECONCILED, "everything is in place")];
        let first = merge(&[], &sayings, Some(3), at(10));
        assert_eq!(merge(&first, &sayings, Some(3), at(99)), first);
    }

    #[test]
    fn conditions_of_somebody_else_stay() {
        let mut foreign = merge(&[], &[Saying::yes(READY, reason::RECONCILED, "")], None, at(1));
        foreign[0].type_ = "IsolationVerified".into();
        let merged = merge(&foreign, &[Saying::yes(READY, reason::RECONCILED, "")], None, at(2));
        assert_eq!(merged.len(), 2);
        assert!(merged.iter().any(|condition| condition.type_ == "IsolationVerified"));
    }

    #[test]
    fn work_under_way_is_no_reason_to_worry() {
        let shown = |saying: Saying| is_worrying(&merge(&[], &[saying], None, at(1))[0]);
        assert!(shown(Saying::no(READY, reason::NAME_CONFLICT, "")));
        assert!(!shown(Saying::no(READY, reason::PROGRESSING, "")));
        assert!(!shown(Saying::yes(READY, reason::RECONCILED, "")));
    }

    #[test]
    fn only_a_changed_status_or_reason_is_a_transition() {
        let old = merge(&[], &[Saying::no(READY, reason::PROGRESSING, "1 of 2")], None, at(1));
        let message = merge(&old, &[Saying::no(READY, reason::PROGRESSING, "2 of 2")], None, at(2));
        assert!(transitions(&old, &message).is_empty());
        let reason = merge(&old, &[Saying::no(READY, reason::DELETING, "")], None, at(2));
        assert_eq!(transitions(&old, &reason).len(), 1);
        assert_eq!(transitions(&[], &old).len(), 1);
    }
}
