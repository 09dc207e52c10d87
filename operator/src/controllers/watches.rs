//! What is watched. The watches of our own kinds fill the stores and ask for reconciles of the object and of those
//! that refer to it; the watches of what we own look at metadata only, and never at Secrets of the whole cluster.
use super::{Queues, reference as place, touched::Touched};
use crate::{
    context::{Stores, Triggers},
    drift::{self, Owner},
    readable::{self, Guarded},
};
use agentapi_crds::{McpConnection, Organization, PromptPolicy, Workspace, names};
use futures::{Stream, StreamExt, channel::mpsc, future, stream};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{
            LimitRange, Namespace, PersistentVolumeClaim, Pod, PodTemplate, ResourceQuota, Service, ServiceAccount,
        },
        networking::v1::NetworkPolicy,
        rbac::v1::{Role, RoleBinding},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt, reflector, reflector::ObjectRef, reflector::Store, watcher},
};
use serde::de::DeserializeOwned;
use std::{
    collections::HashSet,
    fmt::Debug,
    hash::Hash,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::task::JoinSet;

/// Everything that is watched, ready to run.
pub struct Watches {
    /// What they fill.
    pub stores: Stores,
    /// Where they ask for reconciles.
    pub triggers: Triggers,
    /// Where the asking arrives.
    pub queues: Queues,
    tasks: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Watches {
    /// Take the tasks that keep the stores filled; they never end by themselves.
    pub fn start(&mut self) -> JoinSet<()> {
        self.tasks.drain(..).collect()
    }
}

/// Prepare all watches.
pub fn watches(client: &Client) -> Watches {
    let (organizations_tx, organizations_rx) = mpsc::unbounded();
    let (workspaces_tx, workspaces_rx) = mpsc::unbounded();
    let (connections_tx, connections_rx) = mpsc::unbounded();
    let (policies_tx, policies_rx) = mpsc::unbounded();
    let triggers = Triggers {
        organizations: organizations_tx,
        workspaces: workspaces_tx,
        connections: connections_tx,
        policies: policies_tx,
    };
    let queues = Queues {
        organizations: organizations_rx,
        workspaces: workspaces_rx,
        connections: connections_rx,
        policies: policies_rx,
    };
    let (organizations, organization_events) = reflected::<Organization>(client);
    let (workspaces, workspace_events) = reflected::<Workspace>(client);
    let (connections, connection_events) = reflected::<McpConnection>(client);
    let (policies, policy_events) = reflected::<PromptPolicy>(client);
    let (namespaces, namespace_events) = reflected::<PartialObjectMeta<Namespace>>(client);
    let referring = Referring {
        workspaces: workspaces.clone(),
        connections: connections.clone(),
        policies: policies.clone(),
        triggers: triggers.clone(),
        placed: Arc::default(),
    };
    let mut tasks: Vec<Pin<Box<dyn Future<Output = ()> + Send>>> = Vec::new();

    let r = referring.clone();
    tasks.push(Box::pin(organization_events.for_each(move |organization| {
        let _ = r.triggers.organizations.unbounded_send(ObjectRef::from_obj(&organization));
        r.to_organization(&organization.name_any());
        future::ready(())
    })));
    let r = referring.clone();
    tasks.push(Box::pin(workspace_events.for_each(move |workspace| {
        let _ = r.triggers.workspaces.unbounded_send(ObjectRef::from_obj(&workspace));
        r.to_workspace(&workspace);
        future::ready(())
    })));
    let r = referring.clone();
    tasks.push(Box::pin(connection_events.for_each(move |connection| {
        let _ = r.triggers.connections.unbounded_send(ObjectRef::from_obj(&connection));
        r.to_connection(&connection);
        future::ready(())
    })));
    let r = referring.clone();
    tasks.push(Box::pin(policy_events.for_each(move |policy| {
        let _ = r.triggers.policies.unbounded_send(ObjectRef::from_obj(&policy));
        // A lock shadows those of the same name in lower scopes.
        r.each_policy(|other| other.name_any() == policy.name_any() && other.uid() != policy.uid());
        r.to_policy(&policy);
        future::ready(())
    })));
    let r = referring;
    tasks.push(Box::pin(namespace_events.for_each(move |namespace| {
        let name = namespace.name_any();
        match drift::owner(&namespace.metadata) {
            Some(owner) => r.triggers.owner(owner),
            // One that lost its labels is known by its name.
            None => {
                if let Some(slug) = name.strip_prefix("agentapi-") {
                    r.triggers.owner(Owner::Organization(slug.to_owned()));
                }
            }
        }
        r.in_namespace(&name);
        future::ready(())
    })));

    let ours = watcher::Config::default().labels(&format!("{}={}", names::LABEL_MANAGED_BY, names::OPERATOR));
    let sessions =
        watcher::Config::default().labels(&format!("{}={}", names::LABEL_COMPONENT, names::COMPONENT_SESSION));
    tasks.push(owned::<ResourceQuota>(client, &ours, &triggers));
    tasks.push(owned::<LimitRange>(client, &ours, &triggers));
    tasks.push(owned::<ServiceAccount>(client, &ours, &triggers));
    tasks.push(owned::<NetworkPolicy>(client, &ours, &triggers));
    tasks.push(owned::<RoleBinding>(client, &ours, &triggers));
    tasks.push(owned::<Role>(client, &ours, &triggers));
    tasks.push(owned::<Service>(client, &ours, &triggers));
    tasks.push(owned::<PodTemplate>(client, &ours, &triggers));
    tasks.push(owned::<PersistentVolumeClaim>(client, &ours, &triggers));
    // Of these the status counts, too.
    tasks.push(any_change::<Pod>(client, sessions, &triggers));
    tasks.push(any_change::<Deployment>(client, ours, &triggers));

    Watches { stores: Stores { organizations, workspaces, connections, policies, namespaces }, triggers, queues, tasks }
}

/// A store, and the objects that change, appear or go.
fn reflected<K>(client: &Client) -> (Store<K>, impl Stream<Item = K> + Send + use<K>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    let (reader, writer) = reflector::store();
    let kind = K::kind(&()).into_owned();
    let api = Api::<Guarded<K>>::all(client.clone());
    let (store, mut touched) = (reader.clone(), Touched::default());
    let events = readable::watch(api, watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .filter_map(move |event| {
            let event = event.inspect_err(|error| tracing::warn!(%kind, %error, "a watch was interrupted")).ok();
            future::ready(event)
        })
        .flat_map(move |event| stream::iter(touched.by(event, &store, Timestamp::now())));
    (reader, events)
}

fn owned<K>(client: &Client, config: &watcher::Config, triggers: &Triggers) -> Pin<Box<dyn Future<Output = ()> + Send>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let api = Api::<Guarded<PartialObjectMeta<K>>>::all(client.clone());
    let triggers = triggers.clone();
    Box::pin(drift::owners(api, config.clone(), drift::fingerprint).for_each(move |owner| {
        triggers.owner(owner);
        future::ready(())
    }))
}

/// Any change of a session pod concerns its Workspace, and any of a program's Deployment its connection.
fn any_change<K>(
    client: &Client,
    config: watcher::Config,
    triggers: &Triggers,
) -> Pin<Box<dyn Future<Output = ()> + Send>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let api = Api::<Guarded<PartialObjectMeta<K>>>::all(client.clone());
    let triggers = triggers.clone();
    Box::pin(drift::owners(api, config, drift::version).for_each(move |owner| {
        triggers.owner(owner);
        future::ready(())
    }))
}

/// Finds who refers to something that changed.
#[derive(Clone)]
struct Referring {
    workspaces: Store<Workspace>,
    connections: Store<McpConnection>,
    policies: Store<PromptPolicy>,
    triggers: Triggers,
    /// Uids of those that have a name or a place in a quota.
    placed: Arc<Mutex<HashSet<String>>>,
}

impl Referring {
    /// Which others of its organization this event of `object` concerns. When it lets go of its name and its place: those
    /// that have none, and the one of its name, whose objects it may have taken along. One that never had any frees none:
    /// else whoever makes a thousand that are refused would have each looked at whenever one of them changes. When it takes
    /// a place: who was let in at the same time and comes after it.
    fn rivals<K: Resource>(&self, object: &K, is_accepted: fn(&K) -> bool) -> Option<impl Fn(&K) -> bool> {
        let uid = object.meta().uid.clone().unwrap_or_default();
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        let has_a_place = is_accepted(object);
        let is_news = if has_a_place { placed.insert(uid) } else { placed.remove(&uid) };
        is_news.then_some(move |other: &K| {
            if has_a_place {
                is_accepted(other) && place::precedes(object, other, is_accepted)
            } else {
                other.uid() != object.uid() && (!is_accepted(other) || other.name_any() == object.name_any())
            }
        })
    }

    fn to_organization(&self, name: &str) {
        self.each_workspace(|workspace| workspace.spec.organization_ref.name == name);
        self.each_connection(|connection| connection.spec.organization_ref.name == name);
        self.each_policy(|policy| {
            policy.spec.organization_ref.as_ref().is_some_and(|reference| reference.name == name)
        });
    }

    fn to_workspace(&self, workspace: &Workspace) {
        let (name, namespace) = (workspace.name_any(), workspace.namespace());
        let organization = &workspace.spec.organization_ref;
        self.triggers.owner(Owner::Organization(organization.name.clone()));
        if let Some(rivals) = self.rivals(workspace, super::workspace::validate::is_accepted) {
            self.each_workspace(|other| other.spec.organization_ref == *organization && rivals(other));
        }
        self.each_connection(|connection| {
            connection.namespace() == namespace
                && connection.spec.workspace_ref.as_ref().is_some_and(|reference| reference.name == name)
        });
        self.each_policy(|policy| {
            policy.namespace() == namespace
                && policy.spec.workspace_ref.as_ref().is_some_and(|reference| reference.name == name)
        });
    }

    fn to_connection(&self, connection: &McpConnection) {
        // Others have neither a name that they alone may have nor a place.
        let has_a_place =
            |it: &McpConnection| it.spec.transport.stdio.is_some() && super::mcp_connection::validate::is_accepted(it);
        if let Some(rivals) = self.rivals(connection, has_a_place) {
            self.each_connection(|other| {
                other.spec.organization_ref == connection.spec.organization_ref
                    && other.spec.transport.stdio.is_some()
                    && rivals(other)
            });
        }
    }

    fn to_policy(&self, policy: &PromptPolicy) {
        if let Some(rivals) = self.rivals(policy, super::prompt_policy::validate::is_accepted) {
            self.each_policy(|other| other.spec.organization_ref == policy.spec.organization_ref && rivals(other));
        }
    }

    fn in_namespace(&self, name: &str) {
        self.each_workspace(|workspace| workspace.namespace().as_deref() == Some(name));
        self.each_connection(|connection| connection.namespace().as_deref() == Some(name));
        self.each_policy(|policy| policy.namespace().as_deref() == Some(name));
    }

    // A closed channel means that we are shutting down.
    fn each_workspace(&self, concerned: impl Fn(&Workspace) -> bool) {
        for workspace in self.workspaces.state_filter(|workspace: &Workspace| concerned(workspace)) {
            let _ = self.triggers.workspaces.unbounded_send(reference(&workspace));
        }
    }

    fn each_connection(&self, concerned: impl Fn(&McpConnection) -> bool) {
        for connection in self.connections.state_filter(|connection: &McpConnection| concerned(connection)) {
            let _ = self.triggers.connections.unbounded_send(reference(&connection));
        }
    }

    fn each_policy(&self, concerned: impl Fn(&PromptPolicy) -> bool) {
        for policy in self.policies.state_filter(|policy: &PromptPolicy| concerned(policy)) {
            let _ = self.triggers.policies.unbounded_send(reference(&policy));
        }
    }
}

fn reference<K: Resource<DynamicType = ()>>(object: &Arc<K>) -> ObjectRef<K> {
    ObjectRef::from_obj(&**object)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::prompt_policy::validate::tests::policy;
    use agentapi_crds::conditions::ACCEPTED;
    use kube::runtime::watcher::Event;
    use serde_json::json;

    fn judged(name: &str, accepted: &str) -> PromptPolicy {
        let mut made = policy(&json!({"scope": "Organization", "organizationRef": {"name": "acme"}, "template": "x"}));
        (made.metadata.name, made.metadata.uid) = (Some(name.into()), Some(name.into()));
        made.status = serde_json::from_value(json!({"conditions": [{
            "type": ACCEPTED, "status": accepted, "reason": "x", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]}))
        .unwrap();
        made
    }

    #[test]
    fn others_are_looked_at_when_a_place_is_taken_or_becomes_free_and_not_whenever_one_changes() {
        let (policies, mut writer) = reflector::store();
        writer.apply_watcher_event(&Event::Apply(judged("middle", "True")));
        for n in 0..100 {
            writer.apply_watcher_event(&Event::Apply(judged(&format!("refused-{n}"), "False")));
        }
        let (asked, mut asking) = mpsc::unbounded();
        let (organizations, workspaces, connections) = (mpsc::unbounded().0, mpsc::unbounded().0, mpsc::unbounded().0);
        let referring = Referring {
            workspaces: reflector::store().0,
            connections: reflector::store().0,
            policies,
            triggers: Triggers { organizations, workspaces, connections, policies: asked },
            placed: Arc::default(),
        };
        let mut after = |changed: &PromptPolicy| {
            referring.to_policy(changed);
            std::iter::from_fn(|| asking.try_recv().ok()).count()
        };
        assert_eq!(after(&judged("refused-1", "False")), 0);
        assert_eq!(
            (after(&judged("first", "True")), after(&judged("first", "True"))),
            (1, 0),
            "the one that comes after it"
        );
        assert_eq!((after(&judged("first", "False")), after(&judged("first", "False"))), (100, 0));
        let mut namesake = judged("middle", "True");
        namesake.metadata.uid = Some("other".into());
        assert_eq!(after(&namesake), 0);
        namesake.status = judged("middle", "False").status;
        assert_eq!(after(&namesake), 101, "the one that has its name goes without what both had");
        let mut going = judged("second", "True");
        assert_eq!(after(&going), 0);
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(after(&going), 100);
    }
}
