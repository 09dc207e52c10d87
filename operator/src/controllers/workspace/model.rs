//! What `agent.model` adds to a session pod: environment of the agent, and for the router a container beside it that
//! alone has the credentials. Pure, and each provider is a snapshot in the tests.
use crate::controllers::pods::{probe, quantities, restricted};
use agentapi_crds::{
    common::SecretKeyRef,
    model::{ModelProvider, ModelRouter, Route, Routes, Upstream, UpstreamType},
    names::{self, env},
    workspace::{Agent, AgentType},
};
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, ResourceRequirements, SecretKeySelector,
        SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use serde_json::{Value, json};

/// User of the router: another than the agent's.
const ROUTER: i64 = 65532;
const HOME: &str = "/home/router";
/// What stands where a key is asked for and none is needed.
const NO_KEY: &str = "no-key-needed";
/// So long may a model think, in milliseconds.
const PATIENCE: u32 = 600_000;

/// Environment of the agent's container.
pub(super) fn environment(agent: &Agent) -> Vec<EnvVar> {
    let Some(model) = &agent.model else { return Vec::new() };
    let (url, name, credentials) =
        (model.base_url.as_deref(), model.name.as_deref(), model.credentials_secret_ref.as_ref());
    let mut variables = Vec::new();
    match model.provider {
        ModelProvider::Anthropic => {
            variables.extend(optional("ANTHROPIC_BASE_URL", url));
            variables.push(key("ANTHROPIC_API_KEY", credentials));
            variables.extend(optional("ANTHROPIC_MODEL", name));
        }
        ModelProvider::Vertex => {
            variables.push(plain("CLAUDE_CODE_USE_VERTEX", "1"));
            variables.extend(optional("CLOUD_ML_REGION", model.region.as_deref()));
            variables.extend(optional("ANTHROPIC_VERTEX_PROJECT_ID", model.project_id.as_deref()));
            variables.extend(optional("ANTHROPIC_VERTEX_BASE_URL", url));
            variables.extend(optional("ANTHROPIC_MODEL", name));
            variables.push(match credentials {
                Some(reference) => secret(env::GOOGLE_CREDENTIALS, reference),
                // The gateway at baseUrl adds them.
                None => plain("CLAUDE_CODE_SKIP_VERTEX_AUTH", "1"),
            });
        }
        ModelProvider::OpenAiCompatible => {
            variables.extend(optional("OPENAI_BASE_URL", url));
            variables.push(key("OPENAI_API_KEY", credentials));
            variables.extend(optional("OPENAI_MODEL", name));
        }
        ModelProvider::Router => {
            variables.push(plain("ANTHROPIC_BASE_URL", &format!("http://127.0.0.1:{}", names::MODEL_ROUTER_PORT)));
            variables.push(plain("ANTHROPIC_API_KEY", NO_KEY));
        }
    }
    // Claude Code knows how long the contexts of its own models are; other agents have to be told a name.
    if let (Some(router), false) = (&model.router, agent.r#type == AgentType::Claude) {
        variables.push(plain("ANTHROPIC_MODEL", &router.routes.default.model));
    }
    variables
}

/// A variable that both `agent.env` and `agent.model` set: nobody could tell which one the agent gets.
pub(super) fn set_twice(agent: &Agent) -> Option<&str> {
    let ours = environment(agent);
    agent.env.iter().map(|variable| variable.name.as_str()).find(|name| ours.iter().any(|own| own.name == *name))
}

/// The router's container. It is an init container that stays: the agent starts when it answers.
pub(super) fn sidecar(agent: &Agent) -> Option<Container> {
    let router = agent.model.as_ref()?.router.as_ref()?;
    Some(Container {
        name: names::MODEL_ROUTER_CONTAINER.into(),
        image: Some(router.image.clone()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(vec!["agentapi-runtime".into(), "model-router".into()]),
        restart_policy: Some("Always".into()),
        env: Some(router_environment(router)),
        ports: Some(vec![ContainerPort {
            container_port: i32::from(names::MODEL_ROUTER_HEALTH_PORT),
            name: Some(names::MODEL_ROUTER_HEALTH_PORT_NAME.into()),
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        }]),
        startup_probe: Some(probe("/health", names::MODEL_ROUTER_HEALTH_PORT_NAME, 1, 60)),
        liveness_probe: Some(probe("/health", names::MODEL_ROUTER_HEALTH_PORT_NAME, 10, 3)),
        resources: Some(ResourceRequirements {
            limits: Some(quantities([("cpu", "1"), ("memory", "512Mi"), ("ephemeral-storage", "256Mi")])),
            requests: Some(quantities([("cpu", "50m"), ("memory", "128Mi"), ("ephemeral-storage", "64Mi")])),
            claims: None,
        }),
        security_context: Some(SecurityContext { run_as_user: Some(ROUTER), ..restricted() }),
        volume_mounts: Some(vec![VolumeMount {
            name: names::MODEL_ROUTER_CONTAINER.into(),
            mount_path: HOME.into(),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    })
}

/// What the router writes to.
pub(super) fn volume(agent: &Agent) -> Option<Volume> {
    agent.model.as_ref()?.router.as_ref()?;
    Some(Volume {
        name: names::MODEL_ROUTER_CONTAINER.into(),
        empty_dir: Some(EmptyDirVolumeSource { size_limit: Some(Quantity("64Mi".into())), medium: None }),
        ..Volume::default()
    })
}

fn router_environment(router: &ModelRouter) -> Vec<EnvVar> {
    let mut variables = vec![
        plain("HOME", HOME),
        // Kubernetes halves `$$`.
        plain(env::MODEL_ROUTER, &configuration(router).to_string().replace('$', "$$")),
    ];
    for (number, upstream) in router.upstreams.iter().enumerate() {
        let name = if upstream.r#type == UpstreamType::VertexGemini {
            variables.extend(optional("GOOGLE_CLOUD_PROJECT", upstream.project_id.as_deref()));
            variables.extend(optional("GOOGLE_CLOUD_LOCATION", upstream.region.as_deref()));
            env::GOOGLE_CREDENTIALS.to_owned()
        } else {
            key_variable(number)
        };
        variables.extend(upstream.credentials_secret_ref.as_ref().map(|reference| secret(&name, reference)));
    }
    variables
}

fn key_variable(number: usize) -> String {
    format!("{}{number}", env::MODEL_ROUTER_KEY)
}

/// The upstreams and routes in claude-code-router's own words. It puts in the variable where a key is `$NAME`.
fn configuration(router: &ModelRouter) -> Value {
    let providers: Vec<Value> =
        router.upstreams.iter().enumerate().map(|(number, upstream)| provider(number, upstream, router)).collect();
    let Routes { default, background, think, long_context, long_context_threshold } = &router.routes;
    let place = |route: &Route| format!("{},{}", route.upstream, route.model);
    let mut table = json!({ "default": place(default), "longContextThreshold": long_context_threshold });
    for (name, route) in [("background", background), ("think", think), ("longContext", long_context)] {
        if let Some(route) = route {
            table[name] = place(route).into();
        }
    }
    json!({ "Providers": providers, "Router": table, "API_TIMEOUT_MS": PATIENCE })
}

fn provider(number: usize, upstream: &Upstream, router: &ModelRouter) -> Value {
    let own = upstream.base_url.as_deref().map(|url| url.trim_end_matches('/'));
    let base = |default: &str| own.unwrap_or(default).to_owned();
    let (url, transformer) = match upstream.r#type {
        UpstreamType::Anthropic => (format!("{}/v1/messages", base("https://api.anthropic.com")), Some("Anthropic")),
        UpstreamType::OpenAiCompatible => (format!("{}/chat/completions", base("")), None),
        UpstreamType::Gemini => {
            (format!("{}/v1beta/models/", base("https://generativelanguage.googleapis.com")), Some("gemini"))
        }
        UpstreamType::VertexGemini => {
            (format!("{}/", base(&vertex_url(upstream.region.as_deref().unwrap_or_default()))), Some("vertex-gemini"))
        }
    };
    let mut models: Vec<&str> =
        router.routes.all().filter(|route| route.upstream == upstream.name).map(|route| route.model.as_str()).collect();
    models.sort_unstable();
    models.dedup();
    let has_key = upstream.credentials_secret_ref.is_some() && upstream.r#type != UpstreamType::VertexGemini;
    let key = if has_key { format!("${}", key_variable(number)) } else { NO_KEY.into() };
    let mut provider = json!({ "name": upstream.name, "api_base_url": url, "api_key": key, "models": models });
    if let Some(transformer) = transformer {
        provider["transformer"] = json!({ "use": [transformer] });
    }
    provider
}

fn vertex_url(region: &str) -> String {
    match region {
        "global" => "https://aiplatform.googleapis.com".into(),
        region => format!("https://{region}-aiplatform.googleapis.com"),
    }
}

fn plain(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value.into()), value_from: None }
}

fn optional(name: &str, value: Option<&str>) -> Option<EnvVar> {
    value.map(|value| plain(name, value))
}

fn key(name: &str, reference: Option<&SecretKeyRef>) -> EnvVar {
    reference.map_or_else(|| plain(name, NO_KEY), |reference| secret(name, reference))
}

/// The kubelet says which Secret or which key is missing, and the pod waits for it.
fn secret(name: &str, reference: &SecretKeyRef) -> EnvVar {
    EnvVar {
        name: name.into(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: reference.name.clone(),
                key: reference.key.clone(),
                optional: Some(false),
            }),
            ..EnvVarSource::default()
        }),
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
