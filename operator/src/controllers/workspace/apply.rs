//! Writes what `build` prepared and keeps the pool of warm pods. Exhaustive destructuring: an object that is
//! built and not applied here does not compile.
use super::{
    build::{Applied, Prepared, Resources},
    pool,
    validate::Accepted,
};
use crate::{
    apply::Ownership,
    context::Context,
    drift::{self, Owner},
    envelope,
    error::{Error, Result},
    isolation::fences,
};
use agentapi_crds::{names, pod::instantiate};
use k8s_openapi::api::{
    core::v1::{PersistentVolumeClaim, Pod, PodTemplate},
    networking::v1::NetworkPolicy,
};
use kube::{Api, ResourceExt, api::ObjectMeta, runtime::reflector::ObjectRef};
use std::marker::PhantomData;

/// Write the template, the egress policy and the volume. A policy that is missing although it `was_in_place` is a breach.
pub async fn apply(
    context: &Context,
    slug: &str,
    prepared: Resources<Prepared>,
    was_in_place: bool,
) -> Result<Resources<Applied>> {
    let Resources { template, egress, volume, state: _ } = prepared;
    let namespace = template.namespace().unwrap_or_default();
    let templates = Api::<PodTemplate>::namespaced(context.client.clone(), &namespace);
    let volumes = Api::<PersistentVolumeClaim>::namespaced(context.client.clone(), &namespace);
    // The volume before the template: a session that starts at once finds it. It stays when `storage` is
    // taken out of the spec, since what is in it can't be made again; it goes with the Workspace.
    Ok(Resources {
        egress: fences::apply_policy(context, slug, egress, was_in_place).await?,
        volume: match volume {
            Some(volume) => Some(context.applier.apply(&volumes, volume, Ownership::Shared).await?),
            None => None,
        },
        template: context.applier.apply(&templates, template, Ownership::Exclusive).await?,
        state: PhantomData,
    })
}

/// How the pool of warm pods is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Warm pods that a session could take now, current or outdated.
    pub ready: usize,
    /// Why there are not as many as wanted.
    pub trouble: Option<String>,
}

/// Make and take away warm pods.
pub async fn keep_pool(
    context: &Context,
    accepted: &Accepted,
    wanted: usize,
    template: &PodTemplate,
    pods: &[Pod],
) -> Result<Pool> {
    let warm: Vec<Pod> = pods
        .iter()
        .filter(|pod| pod.labels().get(names::LABEL_POOL).map(String::as_str) == Some(names::POOL_WARM))
        .cloned()
        .collect();
    let plan = pool::plan(wanted, template, &warm);
    let api = Api::<Pod>::namespaced(context.client.clone(), &names::tenant_namespace(&accepted.tenancy.slug));
    for pod in &plan.delete {
        context.applier.delete_seen(&api, *pod).await?;
    }
    let mut trouble = pool::trouble(&warm);
    for _ in 0..plan.create {
        let name = format!("w-{}-{}", accepted.name, hex::encode(envelope::random::<4>()?));
        match context.applier.create(&api, &instantiate(template, &name, names::POOL_WARM)).await {
            Ok(_) => {}
            // Over the quota, or refused by admission: a state to report, and no reason to stop everything else.
            Err(Error::Kube { source, .. }) if is_refusal(&source) => {
                trouble = Some(format!("a warm pod is refused: {source}"));
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Pool { ready: plan.ready + plan.outdated, trouble })
}

fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403 || status.code == 422)
}

/// Take away what the Workspace owns in the tenant namespace: with `sessions`, also pods that serve one.
/// Says whether anything is left.
pub async fn remove(
    context: &Context,
    tenant_namespace: &str,
    name: &str,
    namespace: &str,
    sessions: bool,
) -> Result<bool> {
    let client = &context.client;
    let owned = format!("{}={name},{}={namespace}", names::LABEL_WORKSPACE, names::LABEL_WORKSPACE_NAMESPACE);
    let nothing = |_: &ObjectMeta| false;
    let applier = &context.applier;
    applier.sweep(&Api::<PodTemplate>::namespaced(client.clone(), tenant_namespace), &owned, nothing).await?;
    let pods = super::dereference::pods(context, tenant_namespace, name, namespace).await?;
    let api = Api::<Pod>::namespaced(client.clone(), tenant_namespace);
    let mut left = false;
    for pod in pods {
        let warm = pod.labels().get(names::LABEL_POOL).map(String::as_str) == Some(names::POOL_WARM);
        if !warm && !sessions {
            continue;
        }
        left = true;
        if pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        if warm {
            applier.delete_seen(&api, &pod).await?;
        } else {
            applier.delete(&api, &pod.name_any()).await?;
        }
    }
    if sessions && !left {
        applier.sweep(&Api::<NetworkPolicy>::namespaced(client.clone(), tenant_namespace), &owned, nothing).await?;
        let volumes = Api::<PersistentVolumeClaim>::namespaced(client.clone(), tenant_namespace);
        applier.sweep(&volumes, &owned, nothing).await?;
    }
    Ok(left)
}

/// Take away what belongs to Workspaces that are gone although we did not see them go: somebody removed the
/// finalizer by hand. Pods of sessions are the runtime's to end.
pub async fn sweep_orphans(context: &Context, tenant_namespace: &str) -> Result<()> {
    let (client, applier) = (&context.client, &context.applier);
    let owned = format!("{}={},{}", names::LABEL_MANAGED_BY, names::OPERATOR, names::LABEL_WORKSPACE_NAMESPACE);
    let warm = format!("{owned},{}={}", names::LABEL_POOL, names::POOL_WARM);
    let wanted = |meta: &ObjectMeta| match drift::owner(meta) {
        Some(Owner::Workspace(namespace, name)) => {
            context.stores.workspaces.get(&ObjectRef::new(&name).within(&namespace)).is_some()
        }
        _ => true,
    };
    applier.sweep(&Api::<PodTemplate>::namespaced(client.clone(), tenant_namespace), &owned, wanted).await?;
    applier.sweep(&Api::<Pod>::namespaced(client.clone(), tenant_namespace), &warm, wanted).await?;
    applier.sweep(&Api::<NetworkPolicy>::namespaced(client.clone(), tenant_namespace), &owned, wanted).await?;
    applier.sweep(&Api::<PersistentVolumeClaim>::namespaced(client.clone(), tenant_namespace), &owned, wanted).await
}
