//! Offboarding from the cluster's side: drives `tenancy::offboarding` for an Organization that is being deleted, or
//! that is gone and has left something in Postgres. Takes the namespace away and hands the receipt over.
use crate::{
    context::Context,
    error::{Error, Result},
    tenancy::{
        self,
        offboarding::{Leaving, Outcome},
    },
};
use agentapi_crds::names;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use std::collections::BTreeMap;

use super::dereference::{self, NamespaceState};

/// As many steps as can be done now. What the offboarding waits for, or `None` when it is over.
pub async fn advance(context: &Context, leaving: &Leaving) -> Result<Option<String>> {
    let pool = context.postgres()?;
    loop {
        let namespace = async || match remove_namespace(context, leaving).await {
            Ok(left) => left,
            Err(error) => Some(format!("waits for the Kubernetes API ({error})")),
        };
        match tenancy::offboarding::step(pool, leaving, &context.signer, context.now(), namespace).await? {
            Outcome::Did(step) => {
                tracing::info!(organization = %leaving.slug, id = %leaving.id, step = step.name(), "offboarding");
                context.metrics.changed_database("offboarding");
            }
            Outcome::Waits(what) => return Ok(Some(what)),
            Outcome::Receipt(receipt) => {
                publish(context, leaving, &receipt).await?;
                tenancy::offboarding::published(pool, leaving.id).await?;
            }
            Outcome::Over => return Ok(None),
        }
    }
}

/// Take the namespace away; says what is left of it. One of the same name that a successor has is not ours.
pub async fn remove_namespace(context: &Context, leaving: &Leaving) -> Result<Option<String>> {
    let successor = context.stores.organization(&leaving.slug);
    if successor.is_some_and(|it| it.uid().is_some_and(|uid| uid != leaving.id.to_string())) {
        return Ok(None);
    }
    let name = names::tenant_namespace(&leaving.slug);
    let namespaces = Api::<Namespace>::all(context.client.clone());
    match dereference::namespace_state(context, &name).await? {
        NamespaceState::Foreign => Ok(None),
        NamespaceState::Terminating => Ok(Some(format!("waits for namespace {name} to go"))),
        NamespaceState::Ours => {
            let live =
                namespaces.get_metadata_opt(&name).await.map_err(|e| Error::kube("get", "Namespace", &name, e))?;
            if live.is_none() {
                return Ok(None);
            }
            context.applier.delete(&namespaces, &name).await?;
            Ok(Some(format!("waits for namespace {name} to go")))
        }
    }
}

/// Name of the ConfigMap with the receipt.
pub fn receipt_name(leaving: &Leaving) -> String {
    let id = leaving.id.simple().to_string();
    format!("agentapi-receipt-{}-{}", leaving.slug, id.get(..8).unwrap_or_default())
}

/// The receipt is kept where people look; Postgres has it too.
async fn publish(context: &Context, leaving: &Leaving, receipt: &str) -> Result<()> {
    let name = receipt_name(leaving);
    let labels = BTreeMap::from([
        (names::LABEL_MANAGED_BY.to_owned(), names::OPERATOR.to_owned()),
        (names::LABEL_COMPONENT.to_owned(), "receipt".to_owned()),
        (names::LABEL_ORGANIZATION.to_owned(), leaving.slug.clone()),
    ]);
    let map = ConfigMap {
        metadata: ObjectMeta { name: Some(name.clone()), labels: Some(labels), ..ObjectMeta::default() },
        data: Some([("receipt.jws".to_owned(), receipt.to_owned())].into()),
        immutable: Some(true),
        ..ConfigMap::default()
    };
    let maps = Api::<ConfigMap>::namespaced(context.client.clone(), &context.config.system_namespace);
    match maps.create(&PostParams::default(), &map).await {
        Ok(_) => {
            context.metrics.wrote("ConfigMap", "create");
            tracing::info!(organization = %leaving.slug, receipt = name, "the organization has left");
            Ok(())
        }
        // An earlier attempt; the receipt is final, so it is the same.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(Error::kube("create", "ConfigMap", name, error)),
    }
}
