//! Whom the events of a watch of our own kinds concern, once the store shows them. Pure.
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Resource, ResourceExt,
    runtime::{reflector::Store, watcher::Event},
};
use std::{collections::HashSet, hash::Hash, mem::take, sync::Arc};

/// A list comes page by page, and the store shows it when it is whole: who is looked at earlier is judged by the old one,
/// and what went while nobody watched is in no event at all.
pub struct Touched<K> {
    before: Vec<Arc<K>>,
    listed: Vec<K>,
}

impl<K> Default for Touched<K> {
    fn default() -> Self {
        Self { before: Vec::new(), listed: Vec::new() }
    }
}

impl<K> Touched<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    /// The objects that changed, appeared or went with this event, which `store` has taken in. Those that went are shown as
    /// being deleted, whatever they had when they were seen last.
    pub fn by(&mut self, event: Event<K>, store: &Store<K>, now: Timestamp) -> Vec<K> {
        let gone = |mut object: K| {
            object.meta_mut().deletion_timestamp.get_or_insert(Time(now));
            object
        };
        match event {
            Event::Init => {
                (self.before, self.listed) = (store.state(), Vec::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                self.listed.push(object);
                Vec::new()
            }
            Event::InitDone => {
                let mut touched = take(&mut self.listed);
                let there: HashSet<Option<String>> = touched.iter().map(K::uid).collect();
                let before = take(&mut self.before).into_iter().filter(|object| !there.contains(&object.uid()));
                touched.extend(before.map(|object| gone((*object).clone())));
                touched
            }
            Event::Apply(object) => vec![object],
            Event::Delete(object) => vec![gone(object)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::prompt_policy::validate::tests::policy;
    use agentapi_crds::PromptPolicy;
    use kube::runtime::reflector;
    use serde_json::json;

    fn named(name: &str) -> PromptPolicy {
        let mut made = policy(&json!({"scope": "Organization", "organizationRef": {"name": "acme"}, "template": "x"}));
        (made.metadata.name, made.metadata.uid) = (Some(name.into()), Some(name.into()));
        made
    }

    #[test]
    fn a_list_is_told_when_the_store_shows_it_and_with_it_what_went_meanwhile() {
        let (store, mut writer) = reflector::store::<PromptPolicy>();
        let mut touched = Touched::default();
        let mut after = |event: Event<PromptPolicy>| {
            writer.apply_watcher_event(&event);
            let told = touched.by(event, &store, Timestamp::UNIX_EPOCH);
            let shown = |it: &PromptPolicy| (it.name_any(), it.metadata.deletion_timestamp.is_some());
            told.iter().map(shown).collect::<Vec<_>>()
        };
        let there = |name: &str| (name.to_owned(), false);
        let went = |name: &str| (name.to_owned(), true);
        assert!(after(Event::Init).is_empty() && after(Event::InitApply(named("a"))).is_empty());
        assert!(after(Event::InitApply(named("b"))).is_empty());
        assert_eq!(after(Event::InitDone), [there("a"), there("b")]);
        assert_eq!(after(Event::Apply(named("c"))), [there("c")]);
        assert!(after(Event::Init).is_empty() && after(Event::InitApply(named("b"))).is_empty());
        let mut told = after(Event::InitDone);
        told.sort();
        assert_eq!(told, [went("a"), there("b"), went("c")]);
        assert_eq!(after(Event::Delete(named("b"))), [went("b")]);
    }
}
