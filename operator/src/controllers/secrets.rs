//! Watches of the two Secrets in each tenant namespace. One watch per Secret, by name: that is all that the
//! operator may see of Secrets, and a watch of the whole cluster would need the right to read all of them.
use crate::{context::Context, drift, drift::Owner, isolation::fences::is_in_place, readable::Guarded, ticks};
use agentapi_crds::names;
use futures::{StreamExt, future};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt,
    core::PartialObjectMeta,
    runtime::{reflector::ObjectRef, watcher},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// How often we look for namespaces that came or went.
const PERIOD: Duration = Duration::from_secs(1);

/// Keep one watch per tenant and Secret until `stop`.
pub async fn watch(context: Arc<Context>, stop: CancellationToken) {
    let mut running: HashMap<String, Vec<AbortOnDropHandle<()>>> = HashMap::new();
    let mut ticks = ticks::every(PERIOD);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        // Before that we have no rights in the namespace.
        let tenants: HashSet<String> =
            context.stores.organizations.state().iter().filter(|o| is_in_place(o)).map(|o| o.name_any()).collect();
        running.retain(|tenant, _| tenants.contains(tenant));
        for tenant in tenants {
            running.entry(tenant).or_insert_with_key(|tenant| {
                [names::SECRET_DATABASE, names::SECRET_DATA_KEY]
                    .map(|secret| AbortOnDropHandle::new(tokio::spawn(follow(context.clone(), tenant.clone(), secret))))
                    .into()
            });
        }
    }
}

async fn follow(context: Arc<Context>, tenant: String, secret: &'static str) {
    let namespace = names::tenant_namespace(&tenant);
    let api = Api::<Guarded<PartialObjectMeta<Secret>>>::namespaced(context.client.clone(), &namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={secret}"));
    drift::owners(api, config, drift::fingerprint)
        .for_each(move |owner| {
            if owner == Owner::Organization(tenant.clone()) {
                let _ = context.triggers.organizations.unbounded_send(ObjectRef::new(&tenant));
            }
            future::ready(())
        })
        .await;
}
