//! Rotation of the key that signs session tokens, in three steps: **offer** (a next key is published; templates, warm
//! pods and, through the runtime, pods of sessions learn it), **promote** (the runtime signs with it; tokens of its
//! predecessor are still accepted while pods get new ones), **retire** (they no longer are).
//! The decision is pure; nothing is dropped because each step waits for every pod that it would lock out.
use super::{ANNOTATION_ROTATED_AT, ANNOTATION_STEP_AT, annotation, asked_for, begin, has_settled, tell, time, write};
use crate::{
    context::Context,
    error::{Error, Result},
    system::{self, has, text},
};
use agentapi_crds::names;
use k8s_openapi::{
    api::core::v1::{Pod, Secret},
    jiff::{SignedDuration, Timestamp},
};
use kube::{Api, ResourceExt, api::ListParams};
use std::collections::HashSet;

/// Label of the metric.
const KEY: &str = "session-signing";

/// Where a rotation is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// None is under way.
    Idle,
    /// The next key is published.
    Offered { next: String },
    /// The next key has become the present one; tokens of the previous one are still good.
    Promoted { current: String },
}

impl Stage {
    fn of(secret: &Secret) -> Result<Self> {
        if has(secret, names::KEY_SIGNING_NEXT_PRIVATE) {
            return Ok(Self::Offered { next: text(secret, names::KEY_SIGNING_NEXT_PUBLIC)? });
        }
        if has(secret, names::KEY_SIGNING_PREVIOUS_PUBLIC) {
            return Ok(Self::Promoted { current: text(secret, names::KEY_SIGNING_PUBLIC)? });
        }
        Ok(Self::Idle)
    }

    /// Would the next step lock this pod out?
    fn waits_for(&self, pod: &Pod) -> bool {
        let says = |name: &str| pod.annotations().get(name).map_or("", String::as_str);
        match self {
            Self::Idle => false,
            Self::Offered { next } => {
                let id = names::signing_key_id(next);
                !says(names::ANNOTATION_SESSION_KEYS).split(',').any(|known| known == id)
            }
            Self::Promoted { current } => {
                pod.labels().contains_key(names::LABEL_SESSION)
                    && says(names::ANNOTATION_SESSION_TOKEN_KEY) != names::signing_key_id(current)
            }
        }
    }
}

/// A pod that is or will be in use by a session; a probe takes no token.
fn is_alive(pod: &Pod) -> bool {
    if pod.labels().get(names::LABEL_POOL).map(String::as_str) == Some(names::POOL_PROBE) {
        return false;
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Failed" | "Succeeded"))
}

/// Has the key reached the age at which it is rotated?
fn is_old(secret: &Secret, now: Timestamp, days: u32) -> bool {
    let made = time(secret, ANNOTATION_ROTATED_AT).or(secret.metadata.creation_timestamp.as_ref().map(|time| time.0));
    days > 0 && made.is_some_and(|made| now.duration_since(made) >= SignedDuration::from_hours(24 * i64::from(days)))
}

/// Do the next step, if it is time for one.
pub(super) async fn step(context: &Context, secrets: &Api<Secret>, secret: &Secret) -> Result<()> {
    let (stage, now) = (Stage::of(secret)?, context.now());
    if stage == Stage::Idle {
        context.metrics.key_rotation(KEY, None);
        if asked_for(secret) || is_old(secret, now, context.config.signing_key_max_age_days) {
            return offer(context, secrets, secret.clone(), now).await;
        }
        return Ok(());
    }
    let behind = behind(context, &stage).await?;
    context.metrics.key_rotation(KEY, Some(behind.len()));
    if let Some(pod) = behind.first() {
        tracing::debug!(pods = behind.len(), first = pod, "the signing key's rotation waits");
        let status = format!("waits until {} pods have the new key, among them {pod}", behind.len());
        return tell(context, secrets, secret, &status).await;
    }
    if !has_settled(secret, now, context.config.key_settle_seconds) {
        let status = "all pods have the new key; waits until every replica of the runtime has it too";
        return tell(context, secrets, secret, status).await;
    }
    match stage {
        Stage::Offered { .. } => promote(context, secrets, secret.clone(), now).await,
        _ => retire(context, secrets, secret.clone()).await,
    }
}

/// Pods that the next step would lock out.
async fn behind(context: &Context, stage: &Stage) -> Result<Vec<String>> {
    let selector = format!("{}={}", names::LABEL_COMPONENT, names::COMPONENT_SESSION);
    let pods = Api::<Pod>::all(context.client.clone())
        .list(&ListParams::default().labels(&selector))
        .await
        .map_err(|e| Error::kube("list", "Pod", selector, e))?;
    // Whoever may make pods somewhere else must not be able to hold up a rotation.
    let organizations = context.stores.organizations.state();
    let namespaces: HashSet<String> = organizations.iter().map(|it| names::tenant_namespace(&it.name_any())).collect();
    let ours = |pod: &Pod| pod.namespace().is_some_and(|namespace| namespaces.contains(&namespace));
    let behind = pods.items.iter().filter(|pod| ours(pod) && is_alive(pod) && stage.waits_for(pod));
    Ok(behind.map(|pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())).collect())
}

async fn offer(context: &Context, secrets: &Api<Secret>, mut secret: Secret, now: Timestamp) -> Result<()> {
    let pair = system::signing_pair()?;
    let data = secret.data.get_or_insert_default();
    data.insert(names::KEY_SIGNING_NEXT_PRIVATE.to_owned(), pair.private_pem);
    data.insert(names::KEY_SIGNING_NEXT_PUBLIC.to_owned(), pair.public_x);
    begin(&mut secret, now);
    let id = text(&secret, names::KEY_SIGNING_NEXT_PUBLIC)?;
    let note = format!("key {} is published; it signs as soon as all pods know it", names::signing_key_id(&id));
    write(context, secrets, &secret, "SigningKeyOffered", note).await
}

async fn promote(context: &Context, secrets: &Api<Secret>, mut secret: Secret, now: Timestamp) -> Result<()> {
    let data = secret.data.get_or_insert_default();
    for (from, to) in [
        (names::KEY_SIGNING_PUBLIC, names::KEY_SIGNING_PREVIOUS_PUBLIC),
        (names::KEY_SIGNING_NEXT_PUBLIC, names::KEY_SIGNING_PUBLIC),
        (names::KEY_SIGNING_NEXT_PRIVATE, names::KEY_SIGNING_PRIVATE),
    ] {
        if let Some(value) = data.remove(from) {
            data.insert(to.to_owned(), value);
        }
    }
    let annotations = secret.annotations_mut();
    annotations.insert(ANNOTATION_STEP_AT.to_owned(), now.to_string());
    annotations.insert(ANNOTATION_ROTATED_AT.to_owned(), now.to_string());
    let id = text(&secret, names::KEY_SIGNING_PUBLIC)?;
    let note = format!("key {} signs; tokens of its predecessor are replaced", names::signing_key_id(&id));
    write(context, secrets, &secret, "SigningKeyPromoted", note).await
}

async fn retire(context: &Context, secrets: &Api<Secret>, mut secret: Secret) -> Result<()> {
    let old = text(&secret, names::KEY_SIGNING_PREVIOUS_PUBLIC)?;
    secret.data.get_or_insert_default().remove(names::KEY_SIGNING_PREVIOUS_PUBLIC);
    let done = format!("done; in use since {}", annotation(&secret, ANNOTATION_ROTATED_AT));
    let annotations = secret.annotations_mut();
    annotations.remove(ANNOTATION_STEP_AT);
    annotations.insert(super::ANNOTATION_STATUS.to_owned(), done);
    let note = format!("tokens of key {} are refused from now on", names::signing_key_id(&old));
    write(context, secrets, &secret, "SigningKeyRetired", note).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    const OLD: &str = "OLD-OLD-OLD-and-the-rest-of-the-public-key";
    const NEW: &str = "NEW-NEW-NEW-and-the-rest-of-the-public-key";

    fn pod(keys: &str, token: &str, session: bool) -> Pod {
        let labels = if session { json!({names::LABEL_SESSION: "s"}) } else { json!({names::LABEL_POOL: "warm"}) };
        serde_json::from_value(json!({"metadata": {"name": "p", "labels": labels, "annotations": {
            names::ANNOTATION_SESSION_KEYS: keys, names::ANNOTATION_SESSION_TOKEN_KEY: token,
        }}}))
        .unwrap()
    }

    #[rstest]
    #[case::session_that_knows_only_the_old_key("OLD-OLD-OLD-", "OLD-OLD-OLD-", true, true, true)]
    #[case::session_that_knows_both("NEW-NEW-NEW-,OLD-OLD-OLD-", "OLD-OLD-OLD-", true, false, true)]
    #[case::session_with_a_new_token("NEW-NEW-NEW-,OLD-OLD-OLD-", "NEW-NEW-NEW-", true, false, false)]
    #[case::warm_pod_of_the_old_template("OLD-OLD-OLD-", "", false, true, false)]
    #[case::warm_pod_of_the_new_template("NEW-NEW-NEW-,OLD-OLD-OLD-", "", false, false, false)]
    #[case::pod_of_an_older_version("", "", true, true, true)]
    fn no_step_is_taken_over_the_head_of_a_pod(
        #[case] keys: &str,
        #[case] token: &str,
        #[case] session: bool,
        #[case] holds_up_promotion: bool,
        #[case] holds_up_retirement: bool,
    ) {
        let pod = pod(keys, token, session);
        assert_eq!(Stage::Offered { next: NEW.into() }.waits_for(&pod), holds_up_promotion);
        assert_eq!(Stage::Promoted { current: NEW.into() }.waits_for(&pod), holds_up_retirement);
        assert!(!Stage::Idle.waits_for(&pod));
    }

    #[test]
    fn a_rotation_starts_when_it_is_asked_for_or_when_the_key_is_old() {
        let secret = |asked: &str, done: &str| -> Secret {
            serde_json::from_value(json!({"metadata": {
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {names::ANNOTATION_ROTATE_KEY: asked, super::super::ANNOTATION_ROTATION: done},
            }}))
            .unwrap()
        };
        assert!(asked_for(&secret("2", "1")) && !asked_for(&secret("1", "1")) && !asked_for(&secret("", "1")));
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        assert!(is_old(&secret("", ""), at("2026-04-01T00:00:00Z"), 90));
        assert!(!is_old(&secret("", ""), at("2026-03-31T23:59:59Z"), 90));
        assert!(!is_old(&secret("", ""), at("2036-01-01T00:00:00Z"), 0), "0 days: never");
    }

    #[test]
    fn the_stage_is_in_the_secret() {
        let secret = |keys: &[&str]| -> Secret {
            let data: std::collections::BTreeMap<&str, String> = keys
                .iter()
                .map(|key| (*key, base64::Engine::encode(&base64::engine::general_purpose::STANDARD, OLD)))
                .collect();
            serde_json::from_value(json!({ "data": data })).unwrap()
        };
        assert_eq!(Stage::of(&secret(&["private.pem", "public.x"])).unwrap(), Stage::Idle);
        let offered = Stage::of(&secret(&["private.pem", "public.x", "next.pem", "next.x"])).unwrap();
        assert_eq!(offered, Stage::Offered { next: OLD.into() });
        let promoted = Stage::of(&secret(&["private.pem", "public.x", "previous.x"])).unwrap();
        assert_eq!(promoted, Stage::Promoted { current: OLD.into() });
    }
}
