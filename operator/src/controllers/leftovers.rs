//! Rows whose resource went away without us: somebody took our finalizer off and deleted the resource before we saw it.
//! Without this such a policy would be told to every session for ever, and such a connection would keep its tokens.
use crate::{
    context::Context,
    records::{self, ConnectionRow, Kept, PolicyRow, WorkspaceRow},
    ticks,
};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource, ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// How often we look.
const PERIOD: Duration = Duration::from_secs(20);

/// Look again and again until `stop`.
pub async fn watch(context: Arc<Context>, stop: CancellationToken) {
    let mut ticks = ticks::every(PERIOD);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        tokio::join!(
            sweep::<WorkspaceRow, _>(&context, &context.stores.workspaces),
            sweep::<ConnectionRow, _>(&context, &context.stores.connections),
            sweep::<PolicyRow, _>(&context, &context.stores.policies),
        );
    }
}

async fn sweep<R, K>(context: &Context, store: &Store<K>)
where
    R: records::Record,
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync,
{
    let Ok(pool) = context.postgres() else { return };
    let kept = match records::kept::<R>(pool).await {
        Ok(kept) => kept,
        Err(error) => {
            tracing::warn!(%error, kind = R::KIND, "can't look for rows without a resource");
            return;
        }
    };
    for row in kept {
        let known = store.get(&ObjectRef::new(&row.name).within(&row.namespace));
        if is_of(known.as_deref(), &row) || !is_gone::<K>(context, &row).await {
            continue;
        }
        if let Err(error) = records::remove::<R>(pool, row.id, &context.metrics).await {
            tracing::warn!(%error, kind = R::KIND, %row, "can't remove the row of a resource that is gone");
        } else {
            tracing::warn!(kind = R::KIND, %row, "removed the row of a resource that went away without us");
        }
    }
}

/// Whether the object is the one that the row stands for, and not another one of its name.
fn is_of<K: ResourceExt>(object: Option<&K>, row: &Kept) -> bool {
    object.and_then(ResourceExt::uid).is_some_and(|uid| uid == row.id.to_string())
}

/// The watch may be behind: the API server has the last word.
async fn is_gone<K>(context: &Context, row: &Kept) -> bool
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    match Api::<K>::namespaced(context.client.clone(), &row.namespace).get_metadata_opt(&row.name).await {
        Ok(live) => !is_of(live.as_ref(), row),
        Err(error) => {
            tracing::warn!(%error, %row, "can't tell whether a resource is gone");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::workspace::tests::web;
    use agentapi_crds::Workspace;
    use uuid::Uuid;

    #[test]
    fn another_object_of_the_name_is_not_the_one() {
        let mut row = Kept { id: Uuid::nil(), namespace: "team-a".into(), name: "web".into() };
        assert!(!is_of::<Workspace>(None, &row) && !is_of(Some(&web()), &row));
        row.id = web().uid().unwrap().parse().unwrap();
        assert!(is_of(Some(&web()), &row));
        assert_eq!(row.to_string(), "team-a/web");
    }
}
