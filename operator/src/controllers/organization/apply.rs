//! Writes what `build` prepared. Exhaustive destructuring: an object that is built and not applied here
//! does not compile.
use super::build::{Applied, Contents, Foundation, Prepared, TenantSecrets};
use crate::{
    apply::{Applicable, Ownership},
    context::Context,
    error::Result,
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
pub async fn foundation(context: &Context, prepared: Foundation<Prepared>) -> Result<Foundation<Applied>> {
    let Foundation { namespace, operator_binding, runtime_binding, state: _ } = prepared;
    let name = namespace.name_any();
    let all = Api::all(context.client.clone());
    Ok(Foundation {
        namespace: context.applier.apply(&all, namespace, Ownership::Shared).await?,
        operator_binding: exclusive(context, &name, operator_binding).await?,
        runtime_binding: exclusive(context, &name, runtime_binding).await?,
        state: PhantomData,
    })
}

/// Write what needs no Postgres, and sweep what an earlier version of the operator may have left.
pub async fn contents(
    context: &Context,
    namespace: &str,
    organization: &str,
    prepared: Contents<Prepared>,
) -> Result<Contents<Applied>> {
    let Contents { quota, limits, default_deny, session_traffic, session_account, default_account, state: _ } =
        prepared;
    // Isolation first: no pod of this namespace ever runs without it.
    let applied = Contents {
        default_deny: exclusive(context, namespace, default_deny).await?,
        session_traffic: exclusive(context, namespace, session_traffic).await?,
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
