//! What the API server answers about rights: of the tenant's service accounts over Secrets and pods anywhere, and of the
//! operator's and the runtime's over Secrets in the tenant namespace. Bindings of the whole cluster count too.
use super::Outcome;
use crate::{context::Context, error::Error};
use agentapi_crds::names;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::{Api, api::PostParams};

struct Question<'a> {
    account: (&'a str, &'a str),
    verb: &'a str,
    resource: (&'a str, &'a str),
    namespace: &'a str,
}

/// Ask about everything; `other` is the namespace of another tenant.
pub async fn probe(context: &Context, namespace: &str, other: Option<&str>) -> Outcome {
    let system = context.config.system_namespace.as_str();
    let mut questions = Vec::new();
    for account in [names::SESSION_SERVICE_ACCOUNT, "default"] {
        let account = (namespace, account);
        // "" asks about all namespaces at once.
        for place in [Some(namespace), Some(""), Some(system), other].into_iter().flatten() {
            for verb in ["get", "list"] {
                questions.push(Question { account, verb, resource: ("secrets", ""), namespace: place });
            }
            questions.push(Question { account, verb: "create", resource: ("pods", ""), namespace: place });
            questions.push(Question { account, verb: "create", resource: ("pods", "exec"), namespace: place });
        }
    }
    let (operator, runtime) = (&context.config.operator_service_account, &context.config.runtime_service_account);
    // A Secret of the team, such as a model's API key: nobody of ours reads it.
    for account in [operator, runtime] {
        for verb in ["get", "list"] {
            let account = (system, account.as_str());
            questions.push(Question { account, verb, resource: ("secrets", ""), namespace });
        }
    }
    let mut findings = Vec::new();
    for question in &questions {
        match ask(context, question).await {
            Ok(false) => {}
            Ok(true) => findings.push(question.told()),
            Err(error) => return Outcome::unknown(format!("the API server does not answer: {error}")),
        }
    }
    Outcome::of(&findings, "they have no right over Secrets and pods")
}

impl Question<'_> {
    fn told(&self) -> String {
        let (of, account) = self.account;
        let (resource, sub) = self.resource;
        let slash = if sub.is_empty() { "" } else { "/" };
        let place = if self.namespace.is_empty() { "all namespaces" } else { self.namespace };
        format!("service account {of}/{account} may {} {resource}{slash}{sub} in {place}", self.verb)
    }
}

async fn ask(context: &Context, question: &Question<'_>) -> Result<bool, Error> {
    let (of, account) = question.account;
    let (resource, sub) = question.resource;
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{of}:{account}")),
            groups: Some(vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{of}"),
                "system:authenticated".into(),
            ]),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(question.verb.into()),
                resource: Some(resource.into()),
                subresource: Some(sub.into()).filter(|sub: &String| !sub.is_empty()),
                namespace: Some(question.namespace.into()).filter(|namespace: &String| !namespace.is_empty()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews = Api::<SubjectAccessReview>::all(context.client.clone());
    let answer = reviews
        .create(&PostParams::default(), &review)
        .await
        .map_err(|error| Error::kube("create", "SubjectAccessReview", of, error))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
