//! Deleting an Organization: it takes no new sessions, those that run get their grace period, then everything goes
//! (`offboard`), then the finalizer. Nothing here waits for ever: after the deadline the object goes although Postgres
//! did not answer, and the sweep (`controllers::database`) finishes in Postgres what is left.
use super::{SOON, offboard, status::Progress, validate::validate, write_status};
use crate::{
    context::{Context, jittered},
    error::{Error, Result},
    tenancy::{
        self,
        offboarding::{FLUSH, Leaving},
    },
};
use agentapi_crds::{Organization, conditions::reason, names};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        controller::Action,
        events::{Event, EventType},
    },
};

/// One step of the removal.
pub async fn remove(organization: &Organization, context: &Context) -> Result<Action> {
    if !organization.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER) {
        return Ok(Action::await_change());
    }
    let Ok(tenant) = validate(organization) else {
        // It never came into being.
        return release(organization, context).await;
    };
    let requested_at = organization.metadata.deletion_timestamp.as_ref().map_or(context.now(), |time| time.0);
    let leaving = Leaving {
        id: tenant.id,
        slug: tenant.slug,
        policy: tenant.deletion_policy,
        requested_at,
        drain_until: requested_at + grace(organization),
    };
    let left = match offboard::advance(context, &leaving).await {
        Ok(Some(left)) => Some((left, "the roles go when it is gone".to_owned())),
        // Also without Postgres, for an organization that was never in it.
        Ok(None) => offboard::remove_namespace(context, &leaving).await?.map(|left| (left, "all is done".to_owned())),
        Err(Error::Database(error)) => Some(without_postgres(context, &leaving, &error).await?),
        Err(error) => return Err(error),
    };
    let Some((in_cluster, in_postgres)) = left else {
        tell_the_end(organization, context, &leaving).await;
        return release(organization, context).await;
    };
    let patience = SignedDuration::from_secs(i64::from(context.config.deletion_deadline_seconds));
    if is_overdue(&leaving, context.now(), patience) {
        tracing::warn!(organization = %leaving.slug, in_cluster, in_postgres,
            "the deadline of the deletion has passed; what is left is swept later");
        return release(organization, context).await;
    }
    let waiting = |what| Progress::Waiting(reason::DELETING, what);
    write_status(organization, context, &waiting(in_cluster), &waiting(in_postgres)).await?;
    Ok(Action::requeue(jittered(SOON)))
}

/// The namespace does not wait for Postgres longer than the sessions in it may go on.
async fn without_postgres(context: &Context, leaving: &Leaving, error: &tenancy::Error) -> Result<(String, String)> {
    tracing::warn!(%error, organization = %leaving.slug, "can't remove the organization from Postgres yet");
    let in_cluster = if context.now() < leaving.drain_until + FLUSH {
        Some(format!("sessions may go on until {}", leaving.drain_until))
    } else {
        offboard::remove_namespace(context, leaving).await?
    };
    let in_postgres = format!(
        "waits for Postgres ({error}); {} s after the sessions' time the Organization goes anyway, and what is left in \
         Postgres is removed when it is back",
        context.config.deletion_deadline_seconds
    );
    Ok((in_cluster.unwrap_or_else(|| "the namespace is gone".to_owned()), in_postgres))
}

async fn release(organization: &Organization, context: &Context) -> Result<Action> {
    let organizations = Api::<Organization>::all(context.client.clone());
    context.applier.finalizer(&organizations, organization, names::FINALIZER, false).await?;
    Ok(Action::await_change())
}

async fn tell_the_end(organization: &Organization, context: &Context, leaving: &Leaving) {
    let event = Event {
        type_: EventType::Normal,
        reason: "OffboardingCompleted".into(),
        note: Some(format!("the receipt is in ConfigMap {}", offboard::receipt_name(leaving))),
        action: "Delete".into(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &organization.object_ref(&())).await {
        tracing::warn!(%error, "can't publish an Event");
    }
}

/// How long sessions may go on.
fn grace(organization: &Organization) -> SignedDuration {
    SignedDuration::from_secs(i64::from(organization.spec.drain_grace_period_seconds))
}

fn is_overdue(leaving: &Leaving, now: Timestamp, patience: SignedDuration) -> bool {
    now.duration_since(leaving.drain_until) >= patience
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use agentapi_crds::common::DeletionPolicy;

    #[test]
    fn the_deadline_counts_from_the_end_of_the_grace_period() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let leaving = Leaving {
            id: uuid::Uuid::nil(),
            slug: "acme".into(),
            policy: DeletionPolicy::Retain,
            requested_at: at(1000),
            drain_until: at(1030),
        };
        let patience = SignedDuration::from_secs(10);
        assert!(!is_overdue(&leaving, at(1039), patience));
        assert!(is_overdue(&leaving, at(1040), patience));
    }
}
