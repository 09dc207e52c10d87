//! May an object of this namespace belong to that Organization? Pure, over what the watches have seen.
use agentapi_crds::{
    Organization,
    common::Condition,
    conditions::{ACCEPTED, DATABASE_READY, NAMESPACE_READY, reason},
    organization::AllowedNamespaces,
    workspace::EgressRule,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Why an object is not accepted; nothing is created for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One of [`reason`].
    pub reason: &'static str,
    /// What to do about it.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// It will be decided later: nothing is wrong with the object.
    pub fn waits(&self) -> bool {
        matches!(self.reason, reason::ORGANIZATION_NOT_READY | reason::PROGRESSING)
    }

    /// The object is refused for itself, and not because its Organization is gone: only then is what Postgres
    /// has of it removed. The rows of a deleted Organization are retained or deleted with it.
    pub fn revokes(&self) -> bool {
        !self.waits() && !matches!(self.reason, reason::ORGANIZATION_NOT_FOUND | reason::ORGANIZATION_DELETING)
    }
}

/// The Organization of an accepted object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenancy {
    /// `metadata.uid`.
    pub id: Uuid,
    /// `metadata.name`.
    pub slug: String,
    /// The tenant namespace and everything in it is in place.
    pub namespace_ready: bool,
    /// Its row and roles are in place.
    pub database_ready: bool,
    /// How many Workspaces it may have.
    pub workspaces: usize,
    /// How many programs of stdio `McpConnections` it may have.
    pub mcp_servers: usize,
    /// How many `PromptPolicies` it may have.
    pub prompt_policies: usize,
    /// What they may open; `None`: what the Organization does not say.
    pub allowed_egress: Option<Vec<EgressRule>>,
}

impl Tenancy {
    /// This tenancy, if the Organization is in Postgres already.
    pub fn in_postgres(self) -> Result<Self, Refusal> {
        if self.database_ready {
            return Ok(self);
        }
        let message = format!("waits for Organization {:?} to be in place in Postgres", self.slug);
        Err(Refusal::new(reason::ORGANIZATION_NOT_READY, message))
    }
}

/// Whether an object with these conditions was let in. Refused ones take no place: anybody can make one.
pub fn is_accepted<K: ResourceExt>(object: &K, conditions: Option<&Vec<Condition>>) -> bool {
    object.meta().deletion_timestamp.is_none()
        && conditions.into_iter().flatten().any(|condition| condition.type_ == ACCEPTED && condition.status == "True")
}

/// Whether `other` has its name or its place in a quota before `this` gets one. Who has a place keeps it: creation times
/// have a resolution of one second, so age decides only between two that were both let in, by reconciles at once.
pub fn precedes<K: ResourceExt>(other: &K, this: &K, is_accepted: impl Fn(&K) -> bool) -> bool {
    other.uid() != this.uid() && is_accepted(other) && (!is_accepted(this) || age(other) < age(this))
}

/// The uid decides between two of the same second.
fn age<K: ResourceExt>(object: &K) -> (Option<i64>, Option<String>) {
    (object.creation_timestamp().map(|time| time.0.as_second()), object.uid())
}

/// The Organization called `name`, if it admits `namespace` with these labels.
pub fn resolve(
    organization: Option<&Organization>,
    name: &str,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> Result<Tenancy, Refusal> {
    let Some(organization) = organization else {
        return Err(Refusal::new(
            reason::ORGANIZATION_NOT_FOUND,
            format!("there is no Organization {name:?}; create it or correct organizationRef"),
        ));
    };
    if !admits(&organization.spec.allowed_namespaces, namespace, labels) {
        return Err(Refusal::new(
            reason::NAMESPACE_NOT_ALLOWED,
            format!(
                "Organization {name:?} does not admit namespace {namespace:?}; add it to spec.allowedNamespaces of the \
                 Organization"
            ),
        ));
    }
    if organization.metadata.deletion_timestamp.is_some() {
        return Err(Refusal::new(reason::ORGANIZATION_DELETING, format!("Organization {name:?} is being deleted")));
    }
    let id = organization.metadata.uid.as_deref().and_then(|uid| Uuid::parse_str(uid).ok());
    let Some(id) = id else {
        return Err(Refusal::new(reason::ORGANIZATION_NOT_READY, format!("Organization {name:?} has no uid yet")));
    };
    let holds = |kind: &str| {
        let mut conditions = organization.status.iter().flat_map(|status| &status.conditions);
        conditions.any(|condition| condition.type_ == kind && condition.status == "True")
    };
    Ok(Tenancy {
        id,
        slug: name.to_owned(),
        namespace_ready: holds(NAMESPACE_READY),
        database_ready: holds(DATABASE_READY),
        workspaces: usize::try_from(organization.spec.quota.workspaces).unwrap_or_default(),
        mcp_servers: usize::try_from(organization.spec.quota.mcp_servers).unwrap_or_default(),
        prompt_policies: usize::try_from(organization.spec.quota.prompt_policies).unwrap_or_default(),
        allowed_egress: organization.spec.allowed_egress.clone(),
    })
}

fn admits(allowed: &AllowedNamespaces, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
    allowed.names.iter().any(|name| name == namespace)
        || allowed.selector.as_ref().is_some_and(|selector| selects(selector, labels))
}

/// A selector that can't be understood selects nothing.
fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(labels))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::{
        organization::tests::acme,
        prompt_policy::validate::{is_accepted, tests::policy},
    };
    use agentapi_crds::PromptPolicy;
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
    use rstest::rstest;
    use serde_json::{Value, json};

    fn labels() -> BTreeMap<String, String> {
        [("team".to_owned(), "a".to_owned())].into()
    }

    #[rstest]
    #[case::nobody(json!({}), false)]
    #[case::by_name(json!({"names": ["team-a"]}), true)]
    #[case::another_name(json!({"names": ["team-b"]}), false)]
    #[case::everybody(json!({"selector": {}}), true)]
    #[case::by_label(json!({"selector": {"matchLabels": {"team": "a"}}}), true)]
    #[case::another_label(json!({"selector": {"matchLabels": {"team": "b"}}}), false)]
    #[case::by_expression(json!({"selector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a"]}]}}), true)]
    #[case::not_in(json!({"selector": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["a"]}]}}), false)]
    #[case::not_understood(json!({"selector": {"matchExpressions": [{"key": "team", "operator": "Like"}]}}), false)]
    fn who_is_admitted(#[case] allowed: Value, #[case] admitted: bool) {
        let mut organization = acme();
        organization.spec.allowed_namespaces = serde_json::from_value(allowed).unwrap();
        let resolved = resolve(Some(&organization), "acme", "team-a", &labels());
        assert_eq!(resolved.is_ok(), admitted, "{resolved:?}");
        if let Err(refusal) = resolved {
            assert_eq!(refusal.reason, reason::NAMESPACE_NOT_ALLOWED);
        }
    }

    #[test]
    fn who_has_a_place_keeps_it_and_age_decides_between_two_that_have_one() {
        let object = |uid: &str, second: i64, accepted: bool| {
            let mut made = policy(&json!({"scope": "Organization", "template": "x"}));
            made.metadata.uid = Some(uid.into());
            made.metadata.creation_timestamp = Timestamp::from_second(second).ok().map(Time);
            made.status = accepted.then(|| {
                serde_json::from_value(json!({"conditions": [{"type": ACCEPTED, "status": "True", "reason": "x",
                    "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}))
                .unwrap()
            });
            made
        };
        let before = |other: &PromptPolicy, this: &PromptPolicy| precedes(other, this, is_accepted);
        let (placed, late) = (object("b", 7, true), object("a", 7, false));
        assert!(before(&placed, &late), "the smaller uid of the same second took it away");
        assert!(before(&placed, &object("a", 3, false)), "an older one that was let in late took it away");
        assert!(!before(&late, &placed) && !before(&placed, &placed));
        let (older, both) = (object("z", 3, true), object("a", 7, true));
        assert!(before(&older, &both) && !before(&both, &older));
        assert!(before(&both, &placed) && !before(&placed, &both));
    }

    #[test]
    fn an_organization_that_is_missing_or_going_is_named() {
        let refusal = resolve(None, "acme", "team-a", &labels()).unwrap_err();
        assert_eq!(refusal.reason, reason::ORGANIZATION_NOT_FOUND);
        let mut organization = acme();
        organization.spec.allowed_namespaces.names = vec!["team-a".into()];
        organization.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let refusal = resolve(Some(&organization), "acme", "team-a", &labels()).unwrap_err();
        assert_eq!(refusal.reason, reason::ORGANIZATION_DELETING);
    }
}
