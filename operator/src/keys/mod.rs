//! Rotation of the platform's two keys while everything goes on: `signing` (session tokens) and `master` (wraps data
//! keys). Each step is one write that leaves a state in which everything works, and each round looks at the state
//! anew: a rotation goes on wherever it was when its leader died. May touch: the two Secrets, and reads pods.
pub mod master;
pub mod signing;

use crate::{
    context::Context,
    error::{Error, Result},
    system::SystemKeys,
    tenancy, ticks,
};
use agentapi_crds::names;
use k8s_openapi::{
    api::core::v1::Secret,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Resource, ResourceExt,
    api::PostParams,
    runtime::{
        events::{Event, EventType},
        reflector::ObjectRef,
    },
};
use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Value of the rotation annotation that the present key was made for.
const ANNOTATION_ROTATION: &str = "agentapi.dev/rotation";
/// When the present key was made (RFC 3339).
const ANNOTATION_ROTATED_AT: &str = "agentapi.dev/rotated-at";
/// When the present step of a rotation began (RFC 3339).
const ANNOTATION_STEP_AT: &str = "agentapi.dev/rotation-step-at";
/// How far a rotation is, for people.
const ANNOTATION_STATUS: &str = "agentapi.dev/rotation-status";

/// How often we look.
const PERIOD: Duration = Duration::from_secs(2);
/// How often we look for data keys that nothing uses any more.
const TIDY: Duration = Duration::from_secs(300);

/// The keys of the platform as they are now.
pub struct Keyring(RwLock<Arc<SystemKeys>>);

impl Keyring {
    /// With these keys.
    pub fn new(keys: SystemKeys) -> Self {
        Self(RwLock::new(Arc::new(keys)))
    }

    /// The keys now.
    pub fn now(&self) -> Arc<SystemKeys> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, keys: SystemKeys) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }
}

/// Rotate what is to be rotated, until `stop`.
pub async fn watch(context: Arc<Context>, stop: CancellationToken) {
    let mut ticks = ticks::every(PERIOD);
    let mut tidied: Option<tokio::time::Instant> = None;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Err(error) = round(&context).await
            && !error.is_conflict()
        {
            tracing::warn!(%error, "the platform's keys");
        }
        if tidied.is_none_or(|at| at.elapsed() >= TIDY) {
            tidied = Some(tokio::time::Instant::now());
            tidy(&context).await;
        }
    }
}

async fn round(context: &Context) -> Result<()> {
    let secrets = Api::<Secret>::namespaced(context.client.clone(), &context.config.system_namespace);
    let signing = get(&secrets, names::SECRET_SESSION_SIGNING).await?;
    let master = get(&secrets, names::SECRET_MASTER_KEY).await?;
    take_into_use(context, SystemKeys::read(&signing, &master)?);
    signing::step(context, &secrets, &signing).await?;
    master::step(context, &secrets, &master).await
}

/// What is in the Secrets is what counts, whoever wrote it.
fn take_into_use(context: &Context, keys: SystemKeys) {
    let published = context.keys.now().session_public_keys != keys.session_public_keys;
    context.keys.replace(keys);
    if published {
        // The keys are in the template of each Workspace's pods.
        for workspace in context.stores.workspaces.state() {
            let _ = context.triggers.workspaces.unbounded_send(ObjectRef::from_obj(&*workspace));
        }
    }
}

async fn tidy(context: &Context) {
    let Ok(pool) = context.postgres() else { return };
    match tenancy::keys::retire_unused(pool, &context.metrics).await {
        Ok(gone) => {
            for (organization, version) in gone {
                tracing::info!(%organization, version, "a data key that nothing used is gone");
                reconcile(context, &organization.to_string());
            }
        }
        Err(error) => tracing::warn!(%error, "can't look for unused data keys"),
    }
}

/// Bring the Secret of the organization with this id into line with Postgres.
fn reconcile(context: &Context, organization: &str) {
    let organizations = context.stores.organizations.state();
    if let Some(found) = organizations.iter().find(|it| it.uid().as_deref() == Some(organization)) {
        let _ = context.triggers.organizations.unbounded_send(ObjectRef::from_obj(&**found));
    }
}

async fn get(secrets: &Api<Secret>, name: &'static str) -> Result<Secret> {
    secrets.get(name).await.map_err(|e| Error::kube("get", "Secret", name, e))
}

/// Write a changed Secret, unless somebody else changed it meanwhile, and say in an Event why.
async fn write(
    context: &Context,
    secrets: &Api<Secret>,
    secret: &Secret,
    reason: &'static str,
    note: String,
) -> Result<()> {
    let name = secret.name_any();
    let written = secrets
        .replace(&name, &PostParams::default(), secret)
        .await
        .map_err(|e| Error::kube("update", "Secret", &name, e))?;
    context.metrics.wrote("Secret", "update");
    tracing::info!(secret = name, reason, note);
    let event = Event {
        type_: EventType::Normal,
        reason: reason.to_owned(),
        note: Some(note),
        action: "Rotate".into(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &written.object_ref(&())).await {
        tracing::warn!(%error, "can't publish an Event");
    }
    Ok(())
}

/// Say in an annotation how far a rotation is, when that is news.
async fn tell(context: &Context, secrets: &Api<Secret>, secret: &Secret, status: &str) -> Result<()> {
    if secret.annotations().get(ANNOTATION_STATUS).map(String::as_str) == Some(status) {
        return Ok(());
    }
    let mut told = secret.clone();
    told.annotations_mut().insert(ANNOTATION_STATUS.to_owned(), status.to_owned());
    let name = told.name_any();
    secrets
        .replace(&name, &PostParams::default(), &told)
        .await
        .map_err(|e| Error::kube("update", "Secret", name, e))?;
    context.metrics.wrote("Secret", "update");
    Ok(())
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> &'a str {
    secret.annotations().get(name).map_or("", String::as_str)
}

fn time(secret: &Secret, name: &str) -> Option<Timestamp> {
    annotation(secret, name).parse().ok()
}

/// Is there a wish for a rotation that was not granted yet?
fn asked_for(secret: &Secret) -> bool {
    let asked = annotation(secret, names::ANNOTATION_ROTATE_KEY);
    !asked.is_empty() && asked != annotation(secret, ANNOTATION_ROTATION)
}

/// Has the present step lasted long enough for everybody to work with what it wrote?
fn has_settled(secret: &Secret, now: Timestamp, seconds: u32) -> bool {
    time(secret, ANNOTATION_STEP_AT)
        .is_none_or(|since| now.duration_since(since) >= SignedDuration::from_secs(i64::from(seconds)))
}

/// Note in the Secret that a rotation has begun.
fn begin(secret: &mut Secret, now: Timestamp) {
    let asked = annotation(secret, names::ANNOTATION_ROTATE_KEY).to_owned();
    let annotations = secret.annotations_mut();
    annotations.insert(ANNOTATION_ROTATION.to_owned(), asked);
    annotations.insert(ANNOTATION_STEP_AT.to_owned(), now.to_string());
}
