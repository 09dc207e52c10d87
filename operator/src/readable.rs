//! Watches that no single object can stop. Whoever may change an object may write what our types do not take, such as a
//! time in `metadata.managedFields` at the end of the year 9999 or fields nested a thousand deep; the API server keeps
//! it, and a list with it in it would not be read at all, for any tenant. May touch: the Kubernetes API.
use futures::{Stream, StreamExt, future};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Resource,
    runtime::watcher::{self, Event, watcher},
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::{RawValue, to_raw_value};
use std::{borrow::Cow, collections::BTreeMap, fmt::Debug};

/// An object, or what is known of one that can't be read.
#[derive(Clone, Debug)]
pub struct Guarded<K>(pub Result<K, Unreadable>);

/// An object that can't be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}/{}: {why}", .metadata.namespace.as_deref().unwrap_or_default(), .metadata.name.as_deref().unwrap_or_default())]
pub struct Unreadable {
    /// Names, uid and version, and nothing else.
    metadata: Box<ObjectMeta>,
    why: String,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Raw text has no depth, so that whatever is in it is this object's trouble alone.
        Ok(Self(read(Box::<RawValue>::deserialize(deserializer)?.get())))
    }
}

fn read<K: DeserializeOwned>(text: &str) -> Result<K, Unreadable> {
    let error = match serde_json::from_str(text) {
        Ok(object) => return Ok(object),
        Err(error) => error,
    };
    // Anybody can write into those; the rest has a schema.
    without_managed_fields(text).and_then(|text| serde_json::from_str(&text)).map_err(|_| Unreadable::of(text, &error))
}

fn without_managed_fields(text: &str) -> serde_json::Result<String> {
    let mut object: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text)?;
    if let Some(metadata) = object.get_mut("metadata") {
        let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(metadata.get())?;
        fields.remove("managedFields");
        *metadata = to_raw_value(&fields)?;
    }
    serde_json::to_string(&object)
}

impl Unreadable {
    fn of(text: &str, why: &serde_json::Error) -> Self {
        #[derive(Default, Deserialize)]
        struct Object {
            metadata: Names,
        }
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Names {
            name: Option<String>,
            namespace: Option<String>,
            uid: Option<String>,
            resource_version: Option<String>,
        }
        let Object { metadata: Names { name, namespace, uid, resource_version } } =
            serde_json::from_str(text).unwrap_or_default();
        let metadata = ObjectMeta { name, namespace, uid, resource_version, ..ObjectMeta::default() };
        Self { metadata: Box::new(metadata), why: why.to_string() }
    }
}

impl<K: Resource> Resource for Guarded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &K::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &K::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &K::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &K::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|unreadable| &*unreadable.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|unreadable| &mut *unreadable.metadata, K::meta_mut)
    }
}

/// The events of all objects that can be read. One that can't any more stays as it was when it was read last.
pub fn watch<K>(api: Api<Guarded<K>>, config: watcher::Config) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    watcher(api, config).filter_map(|event| future::ready(event.map(readable).transpose()))
}

fn readable<K: Resource<DynamicType = ()>>(event: Event<Guarded<K>>) -> Option<Event<K>> {
    let one = |object: Guarded<K>| {
        object
            .0
            .inspect_err(
                |error| tracing::warn!(kind = %K::kind(&()), %error, "an object can't be read; it is left as it is"),
            )
            .ok()
    };
    Some(match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(one(object)?),
        Event::Apply(object) => Event::Apply(one(object)?),
        Event::Delete(object) => Event::Delete(one(object)?),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use agentapi_crds::PromptPolicy;
    use axum::{Router, body::Body, extract::RawQuery, routing::get};
    use futures::stream;
    use kube::{Client, Config, ResourceExt, core::ObjectList};
    use serde_json::{Value, json};
    use std::time::Duration;
    use tokio::net::TcpListener;

    fn policy(name: &str, managed_fields: &Value) -> Value {
        json!({
            "apiVersion": "agentapi.dev/v1alpha1", "kind": "PromptPolicy",
            "metadata": {"name": name, "namespace": "team-a", "uid": name, "resourceVersion": "7", "managedFields": managed_fields},
            "spec": {"scope": "Organization", "organizationRef": {"name": "acme"}, "template": "x"},
        })
    }

    fn managed(time: &str, fields: &Value) -> Value {
        json!([{"manager": "m", "operation": "Update", "apiVersion": "agentapi.dev/v1alpha1", "fieldsType": "FieldsV1",
                "fieldsV1": fields, "time": time}])
    }

    /// What a real API server took and gave back to every watch.
    fn poisoned() -> Vec<Value> {
        let mut deep = json!({});
        for _ in 0..300 {
            deep = json!({ "f:a": deep });
        }
        let mut broken = policy("broken", &json!([]));
        broken["spec"]["template"] = json!(7);
        vec![
            policy("late", &managed("9999-12-31T23:59:59Z", &json!({}))),
            policy("deep", &managed("2026-01-01T00:00:00Z", &deep)),
            broken,
            policy("good", &managed("2026-01-01T00:00:00Z", &json!({"f:spec": {}}))),
        ]
    }

    /// An API server with these objects; then they change, one after the other.
    async fn server(objects: Vec<Value>) -> Client {
        let answer = move |RawQuery(query): RawQuery| {
            let objects = objects.clone();
            async move {
                if !query.unwrap_or_default().contains("watch=true") {
                    let list = json!({"apiVersion": "agentapi.dev/v1alpha1", "kind": "PromptPolicyList", "metadata": {"resourceVersion": "9"}, "items": objects});
                    return Body::from(list.to_string());
                }
                // As the API server writes it: the type first.
                let lines =
                    objects.into_iter().map(|object| format!("{{\"type\":\"MODIFIED\",\"object\":{object}}}\n"));
                Body::from_stream(stream::iter(lines.map(Ok::<_, std::io::Error>)).chain(stream::pending()))
            }
        };
        let router = Router::new().route("/apis/agentapi.dev/v1alpha1/promptpolicies", get(answer));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Client::try_from(Config::new(url)).unwrap()
    }

    #[tokio::test]
    async fn an_object_that_can_not_be_read_stops_no_watch_of_the_others() {
        let client = server(poisoned()).await;
        let mut events = Box::pin(watch(Api::<Guarded<PromptPolicy>>::all(client), watcher::Config::default()));
        let (mut listed, mut changed) = (Vec::new(), Vec::new());
        while changed.len() < 3 {
            let event = tokio::time::timeout(Duration::from_secs(20), events.next()).await.unwrap().unwrap();
            match event.unwrap() {
                Event::InitApply(object) => listed.push(object.name_any()),
                Event::Apply(object) => changed.push(object.name_any()),
                Event::Init | Event::InitDone => {}
                Event::Delete(object) => unreachable!("nothing was deleted: {}", object.name_any()),
            }
        }
        // What only its managed fields spoil is read without them.
        assert_eq!(
            (listed, changed),
            (["late", "deep", "good"].map(Into::into).into(), ["late", "deep", "good"].map(Into::into).into())
        );
    }

    #[test]
    fn without_the_guard_one_such_object_spoils_the_list() {
        let list = |objects: &[Value]| {
            let list = json!({"metadata": {}, "items": objects}).to_string();
            (
                serde_json::from_str::<ObjectList<PromptPolicy>>(&list).is_ok(),
                serde_json::from_str::<ObjectList<Guarded<PromptPolicy>>>(&list).is_ok(),
            )
        };
        let [late, deep, broken, good] = poisoned().try_into().unwrap();
        for spoilt in [late, deep, broken] {
            assert_eq!(list(&[good.clone(), spoilt]), (false, true));
        }
        assert_eq!(list(&[good]), (true, true));
    }

    #[test]
    fn what_can_be_read_keeps_its_managed_fields_and_what_can_not_keeps_its_name() {
        let read = |value: &Value| serde_json::from_str::<Guarded<PromptPolicy>>(&value.to_string()).unwrap();
        let [late, deep, broken, good] = poisoned().try_into().unwrap();
        assert_eq!(read(&good).0.unwrap().metadata.managed_fields.unwrap().len(), 1);
        for spoilt in [late, deep] {
            let object = read(&spoilt).0.unwrap();
            assert_eq!((object.metadata.managed_fields, object.spec.template.as_str()), (None, "x"));
        }
        let broken = read(&broken);
        assert_eq!((broken.name_any().as_str(), broken.resource_version().as_deref()), ("broken", Some("7")));
        let said = broken.0.unwrap_err().to_string();
        assert!(said.starts_with("team-a/broken: invalid type"), "{said}");
        assert!(read(&json!([])).0.is_err() && read(&Value::Null).0.is_err());
    }
}
