//! Rotation of the master key: a new one is put beside the old one, every data key is wrapped anew, row by row, the
//! tenants' Secrets follow, and then the old one goes. At each moment the Secret has every key that wraps anything.
use super::{
    ANNOTATION_ROTATED_AT, ANNOTATION_STATUS, ANNOTATION_STEP_AT, asked_for, begin, has_settled, reconcile, tell, write,
};
use crate::{
    context::Context,
    controllers::organization::dereference,
    envelope::{self, MasterKey},
    error::{Error, Result},
    system::value,
    tenancy,
};
use agentapi_crds::{conditions::NAMESPACE_READY, names};
use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use kube::{Api, ResourceExt};

/// Label of the metric.
const KEY: &str = "master";

/// Do what is to be done next.
pub(super) async fn step(context: &Context, secrets: &Api<Secret>, secret: &Secret) -> Result<()> {
    if asked_for(secret) {
        return add(context, secrets, secret.clone(), context.now()).await;
    }
    let keys = context.keys.now();
    if keys.master.previous().is_empty() {
        context.metrics.key_rotation(KEY, None);
        return Ok(());
    }
    let pool = context.postgres()?;
    while let Some(done) = tenancy::keys::rewrap_next(pool, &keys.master, &context.metrics).await? {
        tracing::info!(organization = %done.organization, version = done.version, "a data key is wrapped anew");
        reconcile(context, &done.organization.to_string());
    }
    let behind = behind(context, keys.master.current().id()).await?;
    context.metrics.key_rotation(KEY, Some(behind.len()));
    if let Some(first) = behind.first() {
        for organization in &behind {
            let _ =
                context.triggers.organizations.unbounded_send(kube::runtime::reflector::ObjectRef::new(organization));
        }
        let status = format!("waits for the Secrets of {} organizations, among them {first}", behind.len());
        return tell(context, secrets, secret, &status).await;
    }
    // A reconcile that began before the new key came may still store what the old one wrapped.
    if !has_settled(secret, context.now(), context.config.key_settle_seconds) {
        return tell(context, secrets, secret, "everything is wrapped anew; the old key goes in a moment").await;
    }
    drop_previous(context, secrets, secret.clone(), pool).await
}

/// The new key comes in and the old one stays, in one write.
async fn add(context: &Context, secrets: &Api<Secret>, mut secret: Secret, now: Timestamp) -> Result<()> {
    let old = value(&secret, names::KEY_MASTER)?.to_vec();
    let old_id = MasterKey::new(&old)?.id().to_owned();
    let new = envelope::random::<32>()?;
    let new_id = MasterKey::new(&new)?.id().to_owned();
    let data = secret.data.get_or_insert_default();
    data.insert(format!("{}{old_id}", names::KEY_MASTER_PREVIOUS), ByteString(old));
    data.insert(names::KEY_MASTER.to_owned(), ByteString(new.to_vec()));
    begin(&mut secret, now);
    secret.annotations_mut().insert(ANNOTATION_ROTATED_AT.to_owned(), now.to_string());
    let note = format!("master key {new_id} wraps from now on; what {old_id} wrapped is wrapped anew");
    write(context, secrets, &secret, "MasterKeyAdded", note).await
}

/// Organizations whose Secret another master key has wrapped.
async fn behind(context: &Context, current: &str) -> Result<Vec<String>> {
    let mut behind = Vec::new();
    for organization in context.stores.organizations.state() {
        let conditions = organization.status.iter().flat_map(|status| &status.conditions);
        let in_place = conditions.clone().any(|it| it.type_ == NAMESPACE_READY && it.status == "True");
        if !in_place || organization.metadata.deletion_timestamp.is_some() {
            // It has no Secret, or is about to lose it.
            continue;
        }
        let slug = organization.name_any();
        let api = Api::<Secret>::namespaced(context.client.clone(), &names::tenant_namespace(&slug));
        let secret = api
            .get_opt(names::SECRET_DATA_KEY)
            .await
            .map_err(|e| Error::kube("get", "Secret", format!("{slug}/{}", names::SECRET_DATA_KEY), e))?;
        let keys = secret.as_ref().and_then(dereference::data_keys);
        if keys.is_some_and(|keys| keys.all().any(|key| key.master_key_id != current)) {
            behind.push(slug);
        }
    }
    Ok(behind)
}

/// Take out old keys that wrap nothing any more.
async fn drop_previous(
    context: &Context,
    secrets: &Api<Secret>,
    mut secret: Secret,
    pool: &sqlx::PgPool,
) -> Result<()> {
    let in_use = tenancy::keys::wrapped_by(pool).await?;
    let mut gone = Vec::new();
    for key in context.keys.now().master.previous() {
        if !in_use.iter().any(|(id, _)| id == key.id()) {
            gone.push(key.id().to_owned());
        }
    }
    if gone.is_empty() {
        return Ok(());
    }
    let data = secret.data.get_or_insert_default();
    // By what a key is and not by what it is called: somebody may have put one in by hand, from a backup.
    data.retain(|name, bytes| {
        !name.starts_with(names::KEY_MASTER_PREVIOUS)
            || !MasterKey::new(&bytes.0).is_ok_and(|key| gone.iter().any(|id| id == key.id()))
    });
    let annotations = secret.annotations_mut();
    annotations.remove(ANNOTATION_STEP_AT);
    annotations.insert(ANNOTATION_STATUS.to_owned(), "done; everything is wrapped by the present key".to_owned());
    let note = format!("nothing is wrapped by {} any more; it is gone", gone.join(", "));
    write(context, secrets, &secret, "MasterKeyRetired", note).await
}
