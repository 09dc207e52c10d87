//! Does a live object already say what we want? Pure.
use kube::api::ObjectMeta;
use serde_json::Value;

/// True when everything in `wanted` is in `live` with the same value. The server adds defaults to
/// `live`, so maps may hold more; lists must have the same length, since an added item is a change.
pub(super) fn covers(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => wanted.iter().all(|(key, wanted)| match live.get(key) {
            Some(live) => covers(wanted, live),
            None => is_empty(wanted),
        }),
        (Value::Array(wanted), Value::Array(live)) => {
            wanted.len() == live.len() && wanted.iter().zip(live).all(|(wanted, live)| covers(wanted, live))
        }
        _ => wanted == live,
    }
}

/// The server leaves empty things out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// Fields that decide what the object does.
const GUARDED: [&str; 5] = ["f:spec", "f:template", "f:subjects", "f:roleRef", "f:rules"];

/// True when anybody but `manager` has set fields that decide what the object does.
pub(super) fn has_foreign_fields(meta: &ObjectMeta, manager: &str) -> bool {
    meta.managed_fields.iter().flatten().any(|entry| {
        entry.manager.as_deref() != Some(manager)
            && entry.subresource.as_deref().unwrap_or_default().is_empty()
            && entry
                .fields_v1
                .as_ref()
                .and_then(|fields| fields.0.as_object())
                .is_some_and(|fields| GUARDED.iter().any(|guarded| fields.contains_key(*guarded)))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
    use serde_json::json;

    #[test]
    fn server_defaults_do_not_count_as_a_difference() {
        let wanted = json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": []}});
        let live = json!({"metadata": {"uid": "1"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
        assert!(covers(&wanted, &live));
    }

    #[test]
    fn a_changed_value_a_missing_field_and_an_added_item_do() {
        let wanted = json!({"spec": {"hard": {"limits.cpu": "4"}, "types": ["a"]}});
        assert!(!covers(&wanted, &json!({"spec": {"hard": {"limits.cpu": "40"}, "types": ["a"]}})));
        assert!(!covers(&wanted, &json!({"spec": {"types": ["a"]}})));
        assert!(!covers(&wanted, &json!({"spec": {"hard": {"limits.cpu": "4"}, "types": ["a", "b"]}})));
    }

    #[test]
    fn only_fields_of_others_that_decide_something_are_foreign() {
        let entry = |manager: &str, subresource: Option<&str>, fields: Value| ObjectMeta {
            managed_fields: Some(vec![ManagedFieldsEntry {
                manager: Some(manager.into()),
                subresource: subresource.map(Into::into),
                fields_v1: Some(FieldsV1(fields)),
                ..ManagedFieldsEntry::default()
            }]),
            ..ObjectMeta::default()
        };
        let spec = json!({"f:spec": {}});
        assert!(has_foreign_fields(&entry("kubectl-edit", None, spec.clone()), "me"));
        assert!(!has_foreign_fields(&entry("me", None, spec.clone()), "me"));
        assert!(!has_foreign_fields(&entry("quota", Some("status"), json!({"f:status": {}})), "me"));
        assert!(!has_foreign_fields(&entry("kubectl-label", None, json!({"f:metadata": {}})), "me"));
    }
}
