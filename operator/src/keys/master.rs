//! Rotation of the master key, in three steps: **offer** (a next key lies beside the present one, until every replica of
//! the runtime has it mounted), **promote** (it wraps; every data key is wrapped anew, row by row, and the tenants'
//! Secrets follow), **retire** (its predecessor goes). At each moment the Secret has every key that wraps anything, and
//! nothing is wrapped by a key that the runtime can't have.
use super::{
    ANNOTATION_ROTATED_AT, ANNOTATION_STATUS, ANNOTATION_STEP_AT, asked_for, begin, has_settled, reconcile, tell, write,
};
use crate::{
    context::Context,
    controllers::organization::dereference,
    envelope::{self, MasterKey},
    error::{Error, Result},
    system::{has, value},
    tenancy,
};
use agentapi_crds::{conditions::NAMESPACE_READY, names};
use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use kube::{Api, ResourceExt};

/// Label of the metric.
const KEY: &str = "master";

/// Do what is to be done next.
pub(super) async fn step(context: &Context, secrets: &Api<Secret>, secret: &Secret) -> Result<()> {
    if has(secret, names::KEY_MASTER_NEXT) {
        context.metrics.key_rotation(KEY, Some(0));
        // The kubelet takes its time to bring the next key to the runtime, which opens nothing without it.
        if !has_settled(secret, context.now(), context.config.key_settle_seconds) {
            let status = "the next key is there; waits until every replica of the runtime has it too";
            return tell(context, secrets, secret, status).await;
        }
        let (promoted, note) = promote(secret.clone(), context.now())?;
        return write(context, secrets, &promoted, "MasterKeyPromoted", note).await;
    }
    if asked_for(secret) {
        let (offered, note) = offer(secret.clone(), context.now())?;
        return write(context, secrets, &offered, "MasterKeyAdded", note).await;
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

/// The next key comes in; nothing is wrapped by it yet.
fn offer(mut secret: Secret, now: Timestamp) -> Result<(Secret, String)> {
    let next = envelope::random::<32>()?;
    let id = MasterKey::new(&next)?.id().to_owned();
    secret.data.get_or_insert_default().insert(names::KEY_MASTER_NEXT.to_owned(), ByteString(next.to_vec()));
    begin(&mut secret, now);
    Ok((secret, format!("master key {id} is there; it wraps as soon as every replica of the runtime has it")))
}

/// The next key wraps from now on, and the old one stays, in one write.
fn promote(mut secret: Secret, now: Timestamp) -> Result<(Secret, String)> {
    let old = value(&secret, names::KEY_MASTER)?.to_vec();
    let next = value(&secret, names::KEY_MASTER_NEXT)?.to_vec();
    let (old_id, id) = (MasterKey::new(&old)?.id().to_owned(), MasterKey::new(&next)?.id().to_owned());
    let data = secret.data.get_or_insert_default();
    data.remove(names::KEY_MASTER_NEXT);
    data.insert(format!("{}{old_id}", names::KEY_MASTER_PREVIOUS), ByteString(old));
    data.insert(names::KEY_MASTER.to_owned(), ByteString(next));
    let annotations = secret.annotations_mut();
    annotations.insert(ANNOTATION_STEP_AT.to_owned(), now.to_string());
    annotations.insert(ANNOTATION_ROTATED_AT.to_owned(), now.to_string());
    Ok((secret, format!("master key {id} wraps from now on; what {old_id} wrapped is wrapped anew")))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::system::SystemKeys;
    use serde_json::json;

    fn keys(secret: &Secret) -> SystemKeys {
        let signing = Secret {
            data: Some([(names::KEY_SIGNING_PUBLIC.to_owned(), ByteString(b"x".to_vec()))].into()),
            ..Secret::default()
        };
        SystemKeys::read(&signing, secret).unwrap()
    }

    #[test]
    fn the_next_key_wraps_nothing_before_it_has_settled() {
        let asked = json!({"metadata": {"annotations": {names::ANNOTATION_ROTATE_KEY: "1"}}});
        let mut before: Secret = serde_json::from_value(asked).unwrap();
        before.data = Some([(names::KEY_MASTER.to_owned(), ByteString(vec![7; 32]))].into());
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let old = keys(&before).master.current().id().to_owned();
        assert!(asked_for(&before));

        let (offered, note) = offer(before, at("2026-01-01T00:00:00Z")).unwrap();
        assert!(!asked_for(&offered), "once is enough");
        let next = MasterKey::new(value(&offered, names::KEY_MASTER_NEXT).unwrap()).unwrap();
        assert!(note.contains(next.id()) && next.id() != old, "{note}");
        let seen = keys(&offered).master;
        assert_eq!((seen.current().id(), seen.previous().len()), (old.as_str(), 0), "as before");
        assert!(!has_settled(&offered, at("2026-01-01T00:01:59Z"), 120));
        assert!(has_settled(&offered, at("2026-01-01T00:02:00Z"), 120));

        let (promoted, note) = promote(offered, at("2026-01-01T00:02:00Z")).unwrap();
        assert!(note.contains(next.id()) && note.contains(&old), "{note}");
        assert!(!has(&promoted, names::KEY_MASTER_NEXT));
        let seen = keys(&promoted).master;
        assert_eq!(seen.current().id(), next.id());
        assert_eq!(seen.previous().iter().map(MasterKey::id).collect::<Vec<_>>(), [old]);
        assert!(!has_settled(&promoted, at("2026-01-01T00:03:59Z"), 120), "each step has its own time");
    }
}
