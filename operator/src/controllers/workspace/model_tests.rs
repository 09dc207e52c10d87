#![allow(clippy::unwrap_used)]
use super::*;
use crate::controllers::workspace::{
    build::{Resources, build},
    tests::{accepted, egress, surroundings, web},
};
use agentapi_crds::{Workspace, model::Model};
use k8s_openapi::api::core::v1::PodSpec;

fn with(kind: &str, model: &Value) -> Workspace {
    let mut workspace = web();
    workspace.spec.agent =
        serde_json::from_value(json!({ "type": kind, "image": "example/agent:1", "model": model })).unwrap();
    workspace
}

fn pod(workspace: &Workspace) -> PodSpec {
    let Resources { template, .. } = build(workspace, &accepted(), &surroundings(), &egress());
    template.template.unwrap().spec.unwrap()
}

/// What the model adds, without what every pod has.
fn added(kind: &str, model: &Value) -> Value {
    let (spec, plain) = (pod(&with(kind, model)), pod(&with(kind, &Value::Null)));
    let (own, own_volumes) = (plain.containers[0].env.clone().unwrap(), plain.volumes.unwrap());
    let mut agent = spec.containers[0].env.clone().unwrap();
    agent.retain(|variable| !own.contains(variable));
    let mut volumes = spec.volumes.unwrap();
    volumes.retain(|volume| !own_volumes.contains(volume));
    json!({ "agent": agent, "initContainers": spec.init_containers, "volumes": volumes })
}

fn key_of(name: &str, key: &str) -> Value {
    json!({ "name": name, "key": key })
}

fn router() -> Value {
    json!({
        "provider": "Router",
        "router": {
            "image": "agentapi.dev/model-router:dev",
            "upstreams": [
                { "name": "google", "type": "VertexGemini", "region": "us-central1", "projectId": "acme-ai",
                  "credentialsSecretRef": key_of("google", "credentials.json") },
                { "name": "openrouter", "type": "OpenAICompatible", "baseUrl": "https://openrouter.ai/api/v1/",
                  "credentialsSecretRef": key_of("openrouter", "key") },
                { "name": "local", "type": "OpenAICompatible", "baseUrl": "http://vllm.models:8000/v1" },
                { "name": "studio", "type": "Gemini", "credentialsSecretRef": key_of("studio", "key") },
                { "name": "anthropic", "type": "Anthropic", "credentialsSecretRef": key_of("anthropic", "key") },
            ],
            "routes": {
                "default": { "upstream": "google", "model": "gemini-2.5-pro" },
                "background": { "upstream": "local", "model": "qwen3:8b" },
                "think": { "upstream": "openrouter", "model": "deepseek/deepseek-r1" },
                "longContext": { "upstream": "google", "model": "gemini-2.5-flash" },
            },
        },
    })
}

#[test]
fn each_provider() {
    let anthropic = json!({ "provider": "Anthropic", "name": "claude-sonnet-4-5", "baseUrl": "https://llm.acme.example",
        "credentialsSecretRef": key_of("anthropic", "ANTHROPIC_API_KEY") });
    insta::assert_yaml_snapshot!("model_anthropic", added("Claude", &anthropic));
    let vertex = json!({ "provider": "Vertex", "name": "claude-sonnet-4-5", "region": "us-east5", "projectId": "acme-ai",
        "credentialsSecretRef": key_of("google", "credentials.json") });
    insta::assert_yaml_snapshot!("model_vertex", added("Claude", &vertex));
    let gateway = json!({ "provider": "Vertex", "region": "us-east5", "projectId": "acme-ai",
        "baseUrl": "http://gateway.models:8080/v1" });
    insta::assert_yaml_snapshot!("model_vertex_gateway", added("Claude", &gateway));
    let openai = json!({ "provider": "OpenAICompatible", "name": "gpt-5", "baseUrl": "https://api.openai.com/v1",
        "credentialsSecretRef": key_of("openai", "key") });
    insta::assert_yaml_snapshot!("model_openai", added("Codex", &openai));
    insta::assert_yaml_snapshot!("model_router", added("Claude", &router()));
}

#[test]
fn the_routers_credentials_are_nowhere_near_the_agent() {
    for kind in ["Claude", "Droid"] {
        let spec = pod(&with(kind, &router()));
        let agent = serde_json::to_string(&spec.containers).unwrap();
        for secret in ["google", "openrouter", "studio", "anthropic\""] {
            assert!(!agent.contains(&format!("\"name\":\"{secret}")), "{kind}: {secret} in {agent}");
        }
        assert!(!agent.contains("secretKeyRef"), "{agent}");
        let sidecar = &spec.init_containers.unwrap()[0];
        let mounts: Vec<&str> =
            sidecar.volume_mounts.as_ref().unwrap().iter().map(|mount| mount.name.as_str()).collect();
        assert_eq!(mounts, ["model-router"], "the router shares no folder with the agent");
        let shared =
            spec.containers[0].volume_mounts.as_ref().unwrap().iter().any(|mount| mount.name == "model-router");
        assert!(!shared, "the agent could read the router's configuration");
        assert_eq!(spec.share_process_namespace, None);
    }
}

#[test]
fn the_routers_configuration_holds_names_of_variables_and_no_secret() {
    let model: Model = serde_json::from_value(router()).unwrap();
    let text = configuration(model.router.as_ref().unwrap()).to_string();
    assert!(text.contains("\"$AGENTAPI_MODEL_KEY_1\"") && text.contains(NO_KEY), "{text}");
}

#[test]
fn a_variable_is_set_in_one_place() {
    let mut workspace = with("Claude", &router());
    assert_eq!(set_twice(&workspace.spec.agent), None);
    workspace.spec.agent.env =
        serde_json::from_value(json!([{ "name": "A", "value": "1" }, { "name": "ANTHROPIC_BASE_URL", "value": "x" }]))
            .unwrap();
    assert_eq!(set_twice(&workspace.spec.agent), Some("ANTHROPIC_BASE_URL"));
    workspace.spec.agent.model = None;
    assert_eq!(set_twice(&workspace.spec.agent), None);
}
