//! Drift in Postgres: every few seconds two queries, compared with what must be. Organizations that differ are
//! reconciled; what belongs to an Organization that is gone is removed.
use crate::{
    context::Context,
    controllers::organization::offboard,
    records::{self, LiveOrganization, Snapshot},
    tenancy::{self, names::TenantRoles, offboarding::Leaving, roles},
    ticks,
};
use agentapi_crds::{Organization, common::DeletionPolicy, conditions::DATABASE_READY};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt, runtime::reflector::ObjectRef};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How often we look: well within the five seconds in which drift is repaired.
const PERIOD: Duration = Duration::from_secs(2);

/// Look again and again until `stop`.
pub async fn watch(context: Arc<Context>, stop: CancellationToken) {
    let mut ticks = ticks::every(PERIOD);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let seen = records::snapshot(&context.database).await;
        answered(&context, seen.as_ref().err());
        if let Ok(snapshot) = seen {
            look(&context, &snapshot).await;
        }
    }
}

/// Wait until Postgres answers for the first time, and not longer than one attempt takes.
pub async fn first_contact(context: &Context) {
    answered(context, records::snapshot(&context.database).await.as_ref().err());
}

/// Remember whether Postgres answered, and say when that changes.
fn answered(context: &Context, error: Option<&tenancy::Error>) {
    let was_up = context.postgres_up.swap(error.is_none(), Ordering::Relaxed);
    match error {
        Some(error) if was_up => tracing::warn!(%error, "Postgres does not answer; what is in the cluster goes on"),
        None if !was_up => tracing::info!("Postgres answers again"),
        _ => {}
    }
}

async fn look(context: &Context, snapshot: &Snapshot) {
    let organizations = context.stores.organizations.state();
    for organization in &organizations {
        if has_drifted(organization, snapshot) {
            let _ = context.triggers.organizations.unbounded_send(ObjectRef::from_obj(&**organization));
        }
    }
    let now = context.now();
    let mut left: Vec<Leaving> = snapshot.organizations.iter().map(|row| abandoned(row, now)).collect();
    match tenancy::offboarding::unfinished(&context.database).await {
        // What has begun goes on as it began.
        Ok(begun) => {
            left.retain(|row| begun.iter().all(|other| other.id != row.id));
            left.extend(begun);
        }
        Err(error) => tracing::warn!(%error, "can't look for unfinished offboardings"),
    }
    for leaving in left {
        let known = organizations.iter().any(|it| it.uid().is_some_and(|uid| uid == leaving.id.to_string()));
        if !known && is_gone(context, &leaving).await {
            sweep(context, &leaving).await;
        }
    }
}

/// An organization whose Organization went away without us: its sessions have had their time.
fn abandoned(row: &LiveOrganization, now: Timestamp) -> Leaving {
    Leaving {
        id: row.id,
        slug: row.slug.clone(),
        policy: if row.deletes { DeletionPolicy::Delete } else { DeletionPolicy::Retain },
        requested_at: now,
        drain_until: now,
    }
}

fn is(organization: &Organization, row: &LiveOrganization) -> bool {
    organization.uid().is_some_and(|uid| uid == row.id.to_string())
}

/// Does Postgres differ from an Organization that says that it is in place there?
fn has_drifted(organization: &Organization, snapshot: &Snapshot) -> bool {
    let in_place = organization.metadata.deletion_timestamp.is_none()
        && organization.status.iter().flat_map(|status| &status.conditions).any(|condition| {
            condition.type_ == DATABASE_READY
                && condition.status == "True"
                && condition.observed_generation == organization.metadata.generation
        });
    let id = organization.uid().and_then(|uid| uid.parse().ok());
    let (Ok(wanted), Some(id)) = (TenantRoles::of(&organization.name_any()), id) else { return false };
    in_place
        && (!roles::plan(id, &wanted, &snapshot.roles).is_empty()
            || !snapshot.organizations.iter().any(|row| {
                is(organization, row) && row.roles == 2 && Some(row.generation) == organization.metadata.generation
            }))
}

/// The watch may be behind: the API server has the last word.
async fn is_gone(context: &Context, leaving: &Leaving) -> bool {
    match Api::<Organization>::all(context.client.clone()).get_metadata_opt(&leaving.slug).await {
        Ok(live) => live.and_then(|live| live.uid()).is_none_or(|uid| uid != leaving.id.to_string()),
        Err(error) => {
            tracing::warn!(%error, "can't tell whether an Organization is gone");
            false
        }
    }
}

async fn sweep(context: &Context, leaving: &Leaving) {
    match offboard::advance(context, leaving).await {
        Ok(None) => tracing::info!(organization = %leaving.slug, id = %leaving.id, "a deleted Organization is swept"),
        Ok(Some(waits)) => tracing::debug!(organization = %leaving.slug, waits, "sweeping a deleted Organization"),
        Err(error) => tracing::warn!(%error, organization = %leaving.slug, "can't sweep it yet"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::organization::{
        status::{Progress, status},
        tests::acme,
    };

    fn in_place() -> Organization {
        let mut organization = acme();
        organization.status = Some(status(&organization, &Progress::Done, &Progress::Done, Timestamp::UNIX_EPOCH));
        organization
    }

    fn row() -> LiveOrganization {
        LiveOrganization {
            id: acme().metadata.uid.unwrap().parse().unwrap(),
            slug: "acme".into(),
            generation: 3,
            deletes: false,
            roles: 2,
        }
    }

    #[test]
    fn a_missing_role_or_row_is_drift_but_not_before_it_was_in_place() {
        let without_roles = Snapshot { organizations: vec![row()], ..Snapshot::default() };
        assert!(has_drifted(&in_place(), &without_roles));
        assert!(!has_drifted(&acme(), &without_roles));
        let mut going = in_place();
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        assert!(!has_drifted(&going, &without_roles));
    }
}
