//! What Organizations use of their quotas, for their status and for metrics: CPU, memory and storage as the live
//! ResourceQuota counts them, sessions as Postgres does, workspaces as they are accepted. A loop of its own, since pods
//! come and go without a reconcile; it writes a status only when it says something new. May touch: ResourceQuotas and
//! `sessions` (reads), `status.usage`.
use crate::{context::Context, error::Result, metrics::Metrics, quantity, readable::Guarded, records, ticks};
use agentapi_crds::{
    Organization, names,
    organization::{Quota, Usage},
};
use k8s_openapi::{
    api::core::v1::ResourceQuota,
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How old numbers may be.
const EVERY: Duration = Duration::from_secs(15);
/// `status.usage` has a field manager of its own, so that the reconcile need not know it.
const MANAGER: &str = "agentapi-operator-usage";

/// Keep numbers up to date until `stop`.
pub async fn watch(context: Arc<Context>, stop: CancellationToken) {
    let mut ticks = ticks::every(EVERY);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Err(error) = round(&context).await {
            tracing::warn!(%error, "can't see what organizations use; it is tried again");
        }
    }
}

async fn round(context: &Context) -> Result<()> {
    let quotas = Api::<Guarded<ResourceQuota>>::all(context.client.clone());
    let ours = ListParams::default().labels(&format!("{}={}", names::LABEL_MANAGED_BY, names::OPERATOR));
    let listed = quotas.list(&ours).await.map_err(|e| crate::error::Error::kube("list", "ResourceQuota", "all", e))?;
    let counted: HashMap<String, Counted> = listed
        .items
        .into_iter()
        .filter_map(|quota| quota.0.ok())
        .filter_map(|quota| Some((organization_of(&quota.metadata)?, counted(quota))))
        .collect();
    // Postgres being away leaves the number of sessions as it was.
    let sessions = match context.postgres() {
        Ok(pool) => records::live_sessions(pool).await.ok(),
        Err(_) => None,
    };
    let organizations = context.stores.organizations.state();
    for organization in &organizations {
        // Before its namespace is there, nothing is used.
        let Some(counted) = counted.get(&organization.name_any()) else { continue };
        let usage = usage(organization, counted, workspaces(organization, context), sessions.as_ref());
        tell(&context.metrics, organization, &usage);
        let shown = organization.status.as_ref().and_then(|status| status.usage.as_ref());
        if organization.metadata.deletion_timestamp.is_none() && shown != Some(&usage) {
            let all = Api::<Organization>::all(context.client.clone());
            // One whose status can't be written must not keep the others from theirs.
            if let Err(error) = context.applier.status_as(MANAGER, &all, organization, &json!({ "usage": usage })).await
            {
                tracing::warn!(%error, organization = %organization.name_any(), "can't show what it uses");
            }
        }
    }
    context.metrics.keep_quotas(|name| organizations.iter().any(|it| it.name_any() == name));
    Ok(())
}

/// What a ResourceQuota has counted.
#[derive(Debug, Default)]
struct Counted {
    used: BTreeMap<String, Quantity>,
}

/// Labels anybody can write, in a namespace of their own.
fn organization_of(meta: &ObjectMeta) -> Option<String> {
    let organization = meta.labels.as_ref()?.get(names::LABEL_ORGANIZATION)?;
    (meta.namespace == Some(names::tenant_namespace(organization))).then(|| organization.clone())
}

fn counted(quota: ResourceQuota) -> Counted {
    Counted { used: quota.status.and_then(|status| status.used).unwrap_or_default() }
}

fn workspaces(organization: &Organization, context: &Context) -> usize {
    let name = organization.name_any();
    let accepted = context.stores.workspaces.state_filter(|workspace| {
        workspace.spec.organization_ref.name == name
            && workspace.status.as_ref().is_some_and(|status| status.workspace_id.is_some())
    });
    accepted.len()
}

fn usage(
    organization: &Organization,
    counted: &Counted,
    workspaces: usize,
    sessions: Option<&HashMap<Uuid, i64>>,
) -> Usage {
    let before = organization.status.as_ref().and_then(|status| status.usage.clone()).unwrap_or_default();
    let id = organization.metadata.uid.as_deref().and_then(|uid| Uuid::parse_str(uid).ok()).unwrap_or_default();
    let sessions = sessions.map(|live| i32::try_from(live.get(&id).copied().unwrap_or(0)).unwrap_or(i32::MAX));
    Usage {
        workspaces: i32::try_from(workspaces).unwrap_or(i32::MAX),
        sessions: sessions.unwrap_or(before.sessions),
        cpu: counted.used.get("limits.cpu").cloned(),
        memory: counted.used.get("limits.memory").cloned(),
        storage: counted.used.get("requests.storage").cloned(),
    }
}

fn tell(metrics: &Metrics, organization: &Organization, usage: &Usage) {
    let Quota { workspaces, sessions, cpu, memory, storage, .. } = &organization.spec.quota;
    let name = organization.name_any();
    let amount = |quantity: &Quantity| quantity::parse(quantity).map(units);
    let resources = [
        ("workspaces", Some(f64::from(usage.workspaces)), Some(f64::from(*workspaces))),
        ("sessions", Some(f64::from(usage.sessions)), Some(f64::from(*sessions))),
        ("cpu", usage.cpu.as_ref().and_then(amount), amount(cpu)),
        ("memory", usage.memory.as_ref().and_then(amount), amount(memory)),
        ("storage", usage.storage.as_ref().and_then(amount), amount(storage)),
    ];
    for (resource, used, limit) in resources {
        metrics.quota(&name, resource, used.unwrap_or(0.0), limit.unwrap_or(0.0));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a metric is a float")]
fn units(milli: quantity::Milli) -> f64 {
    milli as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::organization::tests::acme;

    fn quota() -> Counted {
        counted(
            serde_json::from_value(json!({
                "metadata": {"name": "agentapi", "labels": {names::LABEL_ORGANIZATION: "acme"}},
                "status": {"used": {"limits.cpu": "2500m", "limits.memory": "3Gi", "requests.storage": "0"}},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn usage_is_what_the_cluster_and_postgres_say() {
        let mut organization = acme();
        let id = Uuid::parse_str(organization.metadata.uid.as_deref().unwrap()).unwrap();
        let seen = usage(&organization, &quota(), 2, Some(&HashMap::from([(id, 4), (Uuid::nil(), 9)])));
        assert_eq!((seen.workspaces, seen.sessions), (2, 4));
        assert_eq!(seen.cpu, Some(Quantity("2500m".into())));
        organization.status = Some(serde_json::from_value(json!({"conditions": [], "usage": seen})).unwrap());
        let without_postgres = usage(&organization, &quota(), 2, None);
        assert_eq!(without_postgres, seen, "the same, so nothing is written");
        assert_eq!(usage(&organization, &quota(), 2, Some(&HashMap::new())).sessions, 0);
    }

    #[test]
    fn a_quota_of_somebody_elses_namespace_says_nothing() {
        let meta = |namespace: &str| ObjectMeta {
            namespace: Some(namespace.into()),
            labels: Some([(names::LABEL_ORGANIZATION.to_owned(), "acme".to_owned())].into()),
            ..ObjectMeta::default()
        };
        assert_eq!(organization_of(&meta("agentapi-acme")).as_deref(), Some("acme"));
        assert_eq!(organization_of(&meta("team-globex")), None);
    }

    #[test]
    fn metrics_are_in_units_and_go_with_the_organization() {
        let metrics = Metrics::new().unwrap();
        let text = || String::from_utf8(metrics.render().unwrap()).unwrap();
        let organization = acme();
        tell(&metrics, &organization, &usage(&organization, &quota(), 1, None));
        assert!(text().contains(r#"agentapi_quota_used{organization="acme",resource="cpu"} 2.5"#), "{}", text());
        assert!(
            text().contains(r#"agentapi_quota_limit{organization="acme",resource="memory"} 17179869184"#),
            "{}",
            text()
        );
        metrics.keep_quotas(|name| name == "acme");
        assert!(text().contains("agentapi_quota_used{"));
        metrics.keep_quotas(|_| false);
        assert!(!text().contains("agentapi_quota_used{") && !text().contains("agentapi_quota_limit{"), "{}", text());
    }
}
