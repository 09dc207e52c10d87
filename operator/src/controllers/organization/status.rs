//! What we say about an Organization. Pure.
use crate::status::{Saying, merge};
use agentapi_crds::{
    Organization,
    conditions::{DATABASE_READY, ISOLATION_VERIFIED, NAMESPACE_READY, READY, reason},
    names,
    organization::OrganizationStatus,
};
use k8s_openapi::jiff::Timestamp;

/// How far one part has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is in place.
    Done,
    /// It is on its way, or waits for something.
    Waiting(&'static str, String),
    /// It can't be.
    Failed(&'static str, String),
}

impl Progress {
    fn saying(&self, kind: &'static str, done: &str) -> Saying {
        match self {
            Self::Done => Saying::yes(kind, reason::RECONCILED, done),
            Self::Waiting(reason, message) | Self::Failed(reason, message) => Saying::no(kind, reason, message.clone()),
        }
    }
}

/// The new status.
pub fn status(
    organization: &Organization,
    namespace: &Progress,
    database: &Progress,
    now: Timestamp,
) -> OrganizationStatus {
    let old = ours(organization.status.clone().unwrap_or_default());
    let name = organization.metadata.name.as_deref().unwrap_or_default();
    let generation = organization.metadata.generation;
    let ready = match (namespace, database) {
        (Progress::Done, Progress::Done) => {
            Saying::yes(READY, reason::RECONCILED, "namespace, Postgres roles and Secrets are in place")
        }
        (Progress::Done, other) | (other, _) => other.saying(READY, ""),
    };
    let sayings = [
        ready,
        namespace.saying(NAMESPACE_READY, "the tenant namespace and everything in it is in place"),
        database.saying(DATABASE_READY, "the row, the roles and their grants are in place"),
    ];
    OrganizationStatus {
        observed_generation: generation,
        namespace: Some(names::tenant_namespace(name)),
        organization_id: organization.metadata.uid.clone(),
        // The loop that counts and the isolation probes write their parts themselves.
        usage: None,
        isolation: None,
        conditions: merge(&old.conditions, &sayings, generation, now),
    }
}

/// The part that is ours: the isolation probes and the loop that counts write theirs with field managers of their own.
pub fn ours(mut status: OrganizationStatus) -> OrganizationStatus {
    status.usage = None;
    status.isolation = None;
    status.conditions.retain(|condition| condition.type_ != ISOLATION_VERIFIED);
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::organization::tests::acme;

    fn condition(status: &OrganizationStatus, kind: &str) -> (String, String, String) {
        status
            .conditions
            .iter()
            .find(|condition| condition.type_ == kind)
            .map(|found| (found.status.clone(), found.reason.clone(), found.message.clone()))
            .unwrap_or_default()
    }

    #[test]
    fn ready_says_what_it_waits_for_and_the_parts_speak_for_themselves() {
        let waiting = Progress::Waiting(reason::DATABASE_UNAVAILABLE, "Postgres can't be reached".into());
        let shown = status(&acme(), &Progress::Done, &waiting, Timestamp::UNIX_EPOCH);
        let (status, why, message) = condition(&shown, READY);
        assert_eq!((status.as_str(), why.as_str()), ("False", reason::DATABASE_UNAVAILABLE));
        assert_eq!(message, "Postgres can't be reached");
        assert_eq!(condition(&shown, NAMESPACE_READY).0, "True");
        assert_eq!(condition(&shown, DATABASE_READY).0, "False");
    }

    #[test]
    fn the_same_state_gives_the_same_status() {
        let mut organization = acme();
        let first = status(&organization, &Progress::Done, &Progress::Done, Timestamp::UNIX_EPOCH);
        organization.status = Some(first.clone());
        let again = status(&organization, &Progress::Done, &Progress::Done, Timestamp::MAX);
        assert_eq!(first, again);
    }
}
