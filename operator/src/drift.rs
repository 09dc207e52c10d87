//! Watches the metadata of what we own and says whose object changed or went, so that a reconcile puts
//! it back within seconds. Remembers owners by name: also an object that lost its labels is found.
use crate::readable::{self, Guarded};
use agentapi_crds::names;
use futures::{Stream, StreamExt, future, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt, watcher},
};
use std::{
    collections::{HashMap, HashSet, hash_map::DefaultHasher},
    fmt::Debug,
    hash::{Hash, Hasher},
};

/// Whose object it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The Organization of this name.
    Organization(String),
    /// The Workspace of this namespace and name.
    Workspace(String, String),
    /// The `McpConnection` of this namespace and name.
    Connection(String, String),
}

/// The owner that the labels name.
pub fn owner(meta: &ObjectMeta) -> Option<Owner> {
    let label = |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
    if let (Some(namespace), Some(name)) = (label(names::LABEL_WORKSPACE_NAMESPACE), label(names::LABEL_WORKSPACE)) {
        return Some(Owner::Workspace(namespace, name));
    }
    match (label(names::LABEL_MCP_CONNECTION_NAMESPACE), label(names::LABEL_MCP_CONNECTION)) {
        (Some(namespace), Some(name)) => Some(Owner::Connection(namespace, name)),
        _ => label(names::LABEL_ORGANIZATION).map(Owner::Organization),
    }
}

/// Changes that matter to us: not those of status, which only touch the version.
pub fn fingerprint(meta: &ObjectMeta) -> u64 {
    let mut hasher = DefaultHasher::new();
    meta.uid.hash(&mut hasher);
    meta.generation.hash(&mut hasher);
    meta.labels.hash(&mut hasher);
    meta.annotations.hash(&mut hasher);
    meta.deletion_timestamp.is_some().hash(&mut hasher);
    for entry in meta.managed_fields.iter().flatten() {
        if entry.subresource.as_deref().unwrap_or_default().is_empty() {
            entry.manager.hash(&mut hasher);
            entry.time.as_ref().map(|time| time.0.as_nanosecond()).hash(&mut hasher);
            entry.fields_v1.as_ref().map(|fields| fields.0.to_string()).hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// Any change at all, as for pods, whose status is what we look at.
pub fn version(meta: &ObjectMeta) -> u64 {
    let mut hasher = DefaultHasher::new();
    meta.uid.hash(&mut hasher);
    meta.resource_version.hash(&mut hasher);
    hasher.finish()
}

/// The owners of objects of kind `K` that changed, appeared or went. Never ends; errors are logged and
/// the watch is taken up again with backoff.
pub fn owners<K>(
    api: Api<Guarded<PartialObjectMeta<K>>>,
    config: watcher::Config,
    fingerprint: fn(&ObjectMeta) -> u64,
) -> impl Stream<Item = Owner> + Send
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let kind = K::kind(&()).into_owned();
    let mut ledger = Ledger::default();
    readable::watch(api, config)
        .default_backoff()
        .filter_map(move |event| {
            let event = event.inspect_err(|error| tracing::warn!(%kind, %error, "a watch was interrupted")).ok();
            future::ready(event)
        })
        .flat_map(move |event| stream::iter(ledger.take(event, fingerprint)))
}

#[derive(Default)]
struct Ledger {
    known: HashMap<(Option<String>, String), (Owner, u64)>,
    listed: HashSet<(Option<String>, String)>,
}

impl Ledger {
    fn take<K>(
        &mut self,
        event: watcher::Event<PartialObjectMeta<K>>,
        fingerprint: fn(&ObjectMeta) -> u64,
    ) -> Vec<Owner>
    where
        K: Resource<DynamicType = ()>,
    {
        match event {
            watcher::Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            watcher::Event::InitApply(object) => {
                self.listed.insert((object.namespace(), object.name_any()));
                self.seen(&object.metadata, fingerprint)
            }
            watcher::Event::Apply(object) => self.seen(&object.metadata, fingerprint),
            watcher::Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let gone: Vec<_> = self.known.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                gone.iter().filter_map(|key| self.known.remove(key)).map(|(owner, _)| owner).collect()
            }
            watcher::Event::Delete(object) => {
                let key = (object.namespace(), object.name_any());
                self.known
                    .remove(&key)
                    .map(|(owner, _)| owner)
                    .or_else(|| owner(&object.metadata))
                    .into_iter()
                    .collect()
            }
        }
    }

    fn seen(&mut self, meta: &ObjectMeta, fingerprint: fn(&ObjectMeta) -> u64) -> Vec<Owner> {
        let key = (meta.namespace.clone(), meta.name.clone().unwrap_or_default());
        let print = fingerprint(meta);
        let before = self.known.get(&key).cloned();
        if before.as_ref().is_some_and(|(_, known)| *known == print) {
            return Vec::new();
        }
        let now = owner(meta);
        let mut owners: Vec<Owner> = before.map(|(owner, _)| owner).into_iter().collect();
        if let Some(now) = now {
            self.known.insert(key, (now.clone(), print));
            if !owners.contains(&now) {
                owners.push(now);
            }
        }
        owners
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::api::core::v1::LimitRange;
    use kube::runtime::watcher::Event;

    fn object(name: &str, organization: &str, generation: i64) -> PartialObjectMeta<LimitRange> {
        let meta = ObjectMeta {
            name: Some(name.into()),
            namespace: Some("agentapi-acme".into()),
            generation: Some(generation),
            labels: Some([(names::LABEL_ORGANIZATION.to_owned(), organization.to_owned())].into()),
            ..ObjectMeta::default()
        };
        PartialObjectMeta { metadata: meta, ..PartialObjectMeta::default() }
    }

    #[test]
    fn what_went_while_the_watch_was_down_is_noticed_at_the_next_list() {
        let mut ledger = Ledger::default();
        let acme = vec![Owner::Organization("acme".into())];
        assert_eq!(ledger.take(Event::Apply(object("a", "acme", 1)), fingerprint), acme);
        assert!(ledger.take(Event::Apply(object("a", "acme", 1)), fingerprint).is_empty(), "nothing changed");
        assert_eq!(ledger.take(Event::Apply(object("a", "acme", 2)), fingerprint), acme);
        assert!(ledger.take::<LimitRange>(Event::Init, fingerprint).is_empty());
        assert_eq!(ledger.take::<LimitRange>(Event::InitDone, fingerprint), acme);
    }

    #[test]
    fn an_object_that_lost_its_labels_still_has_its_owner() {
        let mut ledger = Ledger::default();
        ledger.take(Event::Apply(object("a", "acme", 1)), fingerprint);
        let mut bare = object("a", "acme", 1);
        bare.metadata.labels = None;
        assert_eq!(ledger.take(Event::Delete(bare), fingerprint), vec![Owner::Organization("acme".into())]);
    }

    #[test]
    fn a_workspace_is_known_by_namespace_and_name() {
        let mut meta = object("a", "acme", 1).metadata;
        let labels = meta.labels.get_or_insert_default();
        labels.insert(names::LABEL_WORKSPACE.into(), "web".into());
        labels.insert(names::LABEL_WORKSPACE_NAMESPACE.into(), "team-a".into());
        assert_eq!(owner(&meta), Some(Owner::Workspace("team-a".into(), "web".into())));
    }

    #[test]
    fn so_is_a_connection() {
        let mut meta = object("a", "acme", 1).metadata;
        let labels = meta.labels.get_or_insert_default();
        labels.insert(names::LABEL_MCP_CONNECTION.into(), "files".into());
        labels.insert(names::LABEL_MCP_CONNECTION_NAMESPACE.into(), "team-a".into());
        assert_eq!(owner(&meta), Some(Owner::Connection("team-a".into(), "files".into())));
    }
}
