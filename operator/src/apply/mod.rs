//! Server-side apply with one field manager: the only place that writes objects to the cluster.
//! A write is skipped when the live object already is what we want, so that nothing is written at
//! steady state; what nobody wants any more is swept by label.
mod matches;

use crate::{
    error::{Error, Result},
    metrics::Metrics,
};
use agentapi_crds::names::OPERATOR;
use backon::{ConstantBuilder, Retryable};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Digest of what we applied last: a field that we no longer want is found by it.
pub const ANNOTATION_APPLIED: &str = "agentapi.dev/applied";

/// May others have fields of their own in the object's spec?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Only we: whatever somebody adds is removed again. For objects that isolate a tenant.
    Exclusive,
    /// Others may add fields that we do not set.
    Shared,
}

/// A type of object that we apply.
pub trait Applicable: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned {}
impl<K> Applicable for K where K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned {}

/// The writer to the cluster.
#[derive(Clone)]
pub struct Applier {
    metrics: Arc<Metrics>,
    /// uid → resourceVersion of objects that are right although they do not look so to us.
    settled: Arc<Mutex<HashMap<String, String>>>,
}

impl Applier {
    /// A writer that counts its writes in `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, settled: Arc::default() }
    }

    /// Make the object what `desired` says, and return the live object.
    pub async fn apply<K: Applicable>(&self, api: &Api<K>, desired: K, ownership: Ownership) -> Result<K> {
        let live = self.live(api, &desired.name_any()).await?;
        Box::pin(self.apply_over(api, live, desired, ownership)).await
    }

    /// The live object of that name.
    pub async fn live<K: Applicable>(&self, api: &Api<K>, name: &str) -> Result<Option<K>> {
        patiently(|| api.get_opt(name)).await.map_err(|e| Error::kube("get", &K::kind(&()), name, e))
    }

    /// As [`apply`](Self::apply), for who has looked at the live object already, and told what is wrong with it: nothing
    /// that came after that look is put right in silence, since its own event comes after it.
    pub async fn apply_over<K: Applicable>(
        &self,
        api: &Api<K>,
        live: Option<K>,
        desired: K,
        ownership: Ownership,
    ) -> Result<K> {
        let kind = K::kind(&());
        let name = desired.name_any();
        let wanted = stamped(&desired)?;
        if let Some(live) = live
            && self.is_right(&wanted, &live, ownership)?
        {
            return Ok(live);
        }
        let params = PatchParams::apply(OPERATOR).force();
        let patch = Patch::Apply(&wanted);
        self.metrics.wrote(&kind, "apply");
        let mut applied: K =
            patiently(|| api.patch(&name, &params, &patch)).await.map_err(|e| Error::kube("apply", &kind, &name, e))?;
        if ownership == Ownership::Exclusive && matches::has_foreign_fields(applied.meta(), OPERATOR) {
            applied = self.replace(api, &wanted, &applied).await?;
        }
        self.settle(&applied);
        tracing::info!(%kind, namespace = applied.namespace(), %name, "applied");
        Ok(applied)
    }

    /// Server-side apply leaves the fields that others added; a replace removes them.
    async fn replace<K: Applicable>(&self, api: &Api<K>, wanted: &Value, live: &K) -> Result<K> {
        let kind = K::kind(&());
        let name = live.name_any();
        let mut whole = wanted.clone();
        whole["metadata"]["resourceVersion"] = json!(live.resource_version());
        let whole: K = serde_json::from_value(whole).map_err(|error| malformed::<K>(&error))?;
        self.metrics.wrote(&kind, "replace");
        let params = PostParams { field_manager: Some(OPERATOR.into()), ..PostParams::default() };
        tracing::warn!(%kind, namespace = live.namespace(), %name, "removed fields that somebody added");
        api.replace(&name, &params, &whole).await.map_err(|e| Error::kube("replace", &kind, name, e))
    }

    fn is_right<K: Applicable>(&self, wanted: &Value, live: &K, ownership: Ownership) -> Result<bool> {
        if live.meta().deletion_timestamp.is_some() {
            return Ok(true);
        }
        let settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        let known = live.uid().and_then(|uid| settled.get(&uid).cloned());
        let applied = live.annotations().get(ANNOTATION_APPLIED).map(String::as_str);
        let same_wish = applied == wanted["metadata"]["annotations"][ANNOTATION_APPLIED].as_str();
        if same_wish && known.is_some() && known == live.resource_version() {
            return Ok(true);
        }
        let shown = serde_json::to_value(live).map_err(|error| malformed::<K>(&error))?;
        Ok(matches::covers(wanted, &shown)
            && (ownership == Ownership::Shared || !matches::has_foreign_fields(live.meta(), OPERATOR)))
    }

    fn settle<K: Applicable>(&self, live: &K) {
        if let (Some(uid), Some(version)) = (live.uid(), live.resource_version()) {
            let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
            settled.insert(uid, version);
        }
    }

    /// Create an object that is never changed afterwards (a pod).
    pub async fn create<K: Applicable>(&self, api: &Api<K>, object: &K) -> Result<K> {
        let kind = K::kind(&());
        self.metrics.wrote(&kind, "create");
        let params = PostParams { field_manager: Some(OPERATOR.into()), ..PostParams::default() };
        api.create(&params, object).await.map_err(|e| Error::kube("create", &kind, object.name_any(), e))
    }

    /// Delete exactly the object that was looked at: not a successor of the same name, and not one
    /// that changed since (a warm pod that was claimed meanwhile). Says whether it went.
    pub async fn delete_seen<K: Applicable>(&self, api: &Api<K>, seen: &K) -> Result<bool> {
        let preconditions = Preconditions { uid: seen.uid(), resource_version: seen.resource_version() };
        self.delete_with(api, &seen.name_any(), DeleteParams::default().preconditions(preconditions)).await
    }

    /// Delete by name; says whether there was something to delete.
    pub async fn delete<K: Applicable>(&self, api: &Api<K>, name: &str) -> Result<bool> {
        self.delete_with(api, name, DeleteParams::background()).await
    }

    async fn delete_with<K: Applicable>(&self, api: &Api<K>, name: &str, params: DeleteParams) -> Result<bool> {
        let kind = K::kind(&());
        match api.delete(name, &params).await {
            Ok(_) => {
                self.metrics.wrote(&kind, "delete");
                tracing::info!(%kind, name, "deleted");
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(false),
            Err(error) => Err(Error::kube("delete", &kind, name, error)),
        }
    }

    /// Delete what carries the labels of `selector` and nobody wants.
    pub async fn sweep<K: Applicable>(
        &self,
        api: &Api<K>,
        selector: &str,
        wanted: impl Fn(&ObjectMeta) -> bool,
    ) -> Result<()> {
        let kind = K::kind(&());
        let list = api
            .list_metadata(&ListParams::default().labels(selector))
            .await
            .map_err(|e| Error::kube("list", &kind, selector, e))?;
        for orphan in list.items {
            if orphan.metadata.deletion_timestamp.is_none() && !wanted(&orphan.metadata) {
                self.delete(api, &orphan.name_any()).await?;
            }
        }
        Ok(())
    }

    /// Write a status; the caller has compared it with the live one.
    pub async fn status<K: Applicable>(&self, api: &Api<K>, object: &K, status: &impl Serialize) -> Result<()> {
        self.status_as(OPERATOR, api, object, status).await
    }

    /// Write a part of a status that another field manager than the reconcile owns.
    pub async fn status_as<K: Applicable>(
        &self,
        manager: &str,
        api: &Api<K>,
        object: &K,
        status: &impl Serialize,
    ) -> Result<()> {
        let kind = K::kind(&());
        let name = object.name_any();
        let patch = json!({
            "apiVersion": K::api_version(&()), "kind": kind,
            "metadata": {"name": name, "uid": object.uid()}, "status": status,
        });
        self.metrics.wrote(&kind, "status");
        match api.patch_status(&name, &PatchParams::apply(manager).force(), &Patch::Apply(&patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(Error::kube("write the status of", &kind, name, error)),
        }
    }

    /// Add or remove our finalizer, on exactly the version that was looked at.
    pub async fn finalizer<K: Applicable>(&self, api: &Api<K>, object: &K, name: &str, present: bool) -> Result<()> {
        let kind = K::kind(&());
        let mut finalizers = object.finalizers().to_vec();
        if finalizers.iter().any(|finalizer| finalizer == name) == present {
            return Ok(());
        }
        finalizers.retain(|finalizer| finalizer != name);
        if present {
            finalizers.push(name.to_owned());
        }
        let patch = json!({"metadata": {
            "resourceVersion": object.resource_version(), "uid": object.uid(), "finalizers": finalizers,
        }});
        self.metrics.wrote(&kind, "finalizer");
        let params = PatchParams { field_manager: Some(OPERATOR.into()), ..PatchParams::default() };
        match api.patch_metadata(&object.name_any(), &params, &Patch::Merge(&patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 && !present => Ok(()),
            Err(error) => Err(Error::kube("set the finalizer of", &kind, object.name_any(), error)),
        }
    }
}

/// Has somebody else changed the object since we applied it? That we want something else now is no change by others.
pub fn tampered<K: Applicable>(desired: &K, live: &K) -> bool {
    let (Ok(wanted), Ok(shown)) = (stamped(desired), serde_json::to_value(live)) else { return false };
    let applied = live.annotations().get(ANNOTATION_APPLIED).map(String::as_str);
    let same_wish = applied == wanted["metadata"]["annotations"][ANNOTATION_APPLIED].as_str();
    matches::has_foreign_fields(live.meta(), OPERATOR) || (same_wish && !matches::covers(&wanted, &shown))
}

/// The desired object with the digest of itself.
fn stamped<K: Applicable>(desired: &K) -> Result<Value> {
    let mut wanted = serde_json::to_value(desired).map_err(|error| malformed::<K>(&error))?;
    let digest = hex::encode(&Sha256::digest(wanted.to_string())[..8]);
    wanted["metadata"]["annotations"][ANNOTATION_APPLIED] = Value::String(digest);
    Ok(wanted)
}

fn malformed<K: Applicable>(error: &serde_json::Error) -> Error {
    Error::Malformed { kind: K::kind(&()).into_owned(), reason: error.to_string() }
}

/// A right that we have just bound to ourselves takes a moment to be known to the authorizer.
async fn patiently<T, F: Future<Output = kube::Result<T>>>(call: impl FnMut() -> F) -> kube::Result<T> {
    call.retry(ConstantBuilder::default().with_delay(Duration::from_millis(150)).with_max_times(12))
        .when(|error| {
            matches!(error, kube::Error::Api(status) if status.code == 403 && status.message.contains("cannot "))
        })
        .await
}
