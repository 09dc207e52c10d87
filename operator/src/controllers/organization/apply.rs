//! Writes what `build` prepared. Exhaustive destructuring: an object that is built and not applied here
//! does not compile.
use super::build::{Applied, Contents, Foundation, Prepared, TenantSecrets};
use crate::{
    apply::{Applicable, Ownership},
    context::Context,
    error::Result,
    isolation::fences::Seen,
};
use agentapi_crds::names;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::{LimitRange, ResourceQuota},
        networking::v1::NetworkPolicy,
    },
};
use kube::{Api, ResourceExt, api::ObjectMeta};
use std::marker::PhantomData;

/// Write the namespace and the rights in it.
pub async fn foundation(
    context: &Context,
    prepared: Foundation<Prepared>,
    seen: Option<&Seen>,
) -> Result<Foundation<Applied>> {
    let Foundation { namespace, operator_binding, runtime_binding, state: _ } = prepared;
    let name = namespace.name_any();
    let all = Api::all(context.client.clone());
    let live = match seen {
        Some(seen) => seen.namespace.clone(),
        None => context.applier.live(&all, &name).await?,
    };
    let seen = seen.map(|seen| seen.bindings.as_slice());
    Ok(Foundation {
        namespace: context.applier.apply_over(&all, live, namespace, Ownership::Shared).await?,
        operator_binding: fence(context, &name, operator_binding, seen).await?,
        runtime_binding: fence(context, &name, runtime_binding, seen).await?,
        state: PhantomData,
    })
}

/// Write what needs no Postgres, and sweep what an earlier version of the operator may have left.
pub async fn contents(
    context: &Context,
    namespace: &str,
    organization: &str,
    prepared: Contents<Prepared>,
    seen: Option<&Seen>,
) -> Result<Contents<Applied>> {
    let Contents { quota, limits, default_deny, session_traffic, session_account, default_account, state: _ } =
        prepared;
    // Isolation first: no pod of this namespace ever runs without it.
    let seen = seen.map(|seen| seen.policies.as_slice());
    let applied = Contents {
        default_deny: fence(context, namespace, default_deny, seen).await?,
        session_traffic: fence(context, namespace, session_traffic, seen).await?,
        quota: exclusive(context, namespace, quota).await?,
        limits: exclusive(context, namespace, limits).await?,
        session_account: shared(context, namespace, session_account).await?,
        default_account: shared(context, namespace, default_account).await?,
        state: PhantomData,
    };
    let owned = format!(
        "{}={},{}={organization},!{},!{}",
        names::LABEL_MANAGED_BY,
        names::OPERATOR,
        names::LABEL_ORGANIZATION,
        names::LABEL_WORKSPACE,
        names::LABEL_MCP_CONNECTION
    );
    let (deny, traffic) = (applied.default_deny.metadata.name.clone(), applied.session_traffic.metadata.name.clone());
    let policy = |meta: &ObjectMeta| meta.name == deny || meta.name == traffic;
    context.applier.sweep::<NetworkPolicy>(&api(context, namespace), &owned, policy).await?;
    let name = applied.quota.metadata.name.clone();
    context.applier.sweep::<ResourceQuota>(&api(context, namespace), &owned, |meta| meta.name == name).await?;
    let name = applied.limits.metadata.name.clone();
    context.applier.sweep::<LimitRange>(&api(context, namespace), &owned, |meta| meta.name == name).await?;
    Ok(applied)
}

/// Write the two Secrets.
pub async fn secrets(
    context: &Context,
    namespace: &str,
    prepared: TenantSecrets<Prepared>,
) -> Result<TenantSecrets<Applied>> {
    let TenantSecrets { database, data_key, state: _ } = prepared;
    Ok(TenantSecrets {
        database: shared(context, namespace, database).await?,
        data_key: shared(context, namespace, data_key).await?,
        state: PhantomData,
    })
}

fn api<K>(context: &Context, namespace: &str) -> Api<K>
where
    K: Applicable + kube::Resource<Scope = NamespaceResourceScope>,
{
    Api::namespaced(context.client.clone(), namespace)
}

/// Over the object that was judged, if it was.
async fn fence<K>(context: &Context, namespace: &str, object: K, seen: Option<&[K]>) -> Result<K>
where
    K: Applicable + kube::Resource<Scope = NamespaceResourceScope>,
{
    let Some(seen) = seen else { return exclusive(context, namespace, object).await };
    let live = seen.iter().find(|live| live.name_any() == object.name_any()).cloned();
    context.applier.apply_over(&api(context, namespace), live, object, Ownership::Exclusive).await
}

async fn exclusive<K>(context: &Context, namespace: &str, object: K) -> Result<K>
where
    K: Applicable + kube::Resource<Scope = NamespaceResourceScope>,
{
    context.applier.apply(&api(context, namespace), object, Ownership::Exclusive).await
}

async fn shared<K>(context: &Context, namespace: &str, object: K) -> Result<K>
where
    K: Applicable + kube::Resource<Scope = NamespaceResourceScope>,
{
    context.applier.apply(&api(context, namespace), object, Ownership::Shared).await
}
