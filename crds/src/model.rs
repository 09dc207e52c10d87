//! Which model an agent of a Workspace talks to, and by which way. Data only.
use crate::common::SecretKeyRef;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The model that the agent talks to. Left out: what `env`, `secretRefs` and the agent itself say.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.provider != 'Anthropic' || has(self.credentialsSecretRef)", "model.provider Anthropic needs credentialsSecretRef, the name of a Secret in the tenant namespace and its key with the API key"))]
#[x_kube(validation = ("self.provider != 'OpenAICompatible' || (has(self.baseUrl) && has(self.name))", "model.provider OpenAICompatible needs baseUrl and name, for example baseUrl: https://api.openai.com/v1 and name: gpt-5"))]
#[x_kube(validation = ("self.provider != 'Vertex' || (has(self.region) && has(self.projectId))", "model.provider Vertex needs region and projectId, for example region: us-east5 and projectId: my-project"))]
#[x_kube(validation = ("self.provider != 'Vertex' || has(self.credentialsSecretRef) || has(self.baseUrl)", "model.provider Vertex needs credentialsSecretRef (a Google credentials file), or baseUrl of a gateway that adds the credentials itself"))]
#[x_kube(validation = ("self.provider == 'Vertex' || (!has(self.region) && !has(self.projectId))", "model.region and model.projectId belong to provider Vertex; leave them out, or put them into an upstream of the router"))]
#[x_kube(validation = ("(self.provider == 'Router') == has(self.router)", "model.provider Router and model.router go together; set both or neither"))]
#[x_kube(validation = ("self.provider != 'Router' || (!has(self.name) && !has(self.baseUrl) && !has(self.credentialsSecretRef))", "with model.provider Router, name, baseUrl and credentialsSecretRef belong into model.router.upstreams and model.router.routes"))]
pub struct Model {
    /// Who serves the model.
    pub provider: ModelProvider,
    /// Name of the model, as the provider calls it. Left out: the agent's own default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = ("self.matches('^[A-Za-z0-9][A-Za-z0-9._:/@-]*$')", "a model's name is letters, digits and . _ : / @ -, for example claude-sonnet-4-5"))]
    pub name: Option<String>,
    /// Base URL of the provider's API. Left out: the provider's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = ("self.matches('^https?://[A-Za-z0-9.:-]+(/[A-Za-z0-9._~/-]*)?$')", "baseUrl is an http or https URL without user information, query and fragment, for example https://api.example.com/v1"))]
    pub base_url: Option<String>,
    /// Region of Vertex AI, for example `us-east5` or `global`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = ("self.matches('^[a-z][a-z0-9-]*$')", "region is the name of a Google Cloud region, for example us-east5"))]
    pub region: Option<String>,
    /// Google Cloud project that Vertex AI bills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = ("self.matches('^[a-z0-9][a-z0-9:.-]*$')", "projectId is the id of a Google Cloud project, for example my-project"))]
    pub project_id: Option<String>,
    /// The key of a Secret in the tenant namespace with the API key or, for Vertex, with the credentials file as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretKeyRef>,
    /// The model router, a container beside the agent that holds the credentials: the agent never gets them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<ModelRouter>,
}

/// Who serves a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ModelProvider {
    /// Anthropic, or what speaks its Messages API.
    Anthropic,
    /// Anthropic's models on Google's Vertex AI.
    Vertex,
    /// What speaks `OpenAI`'s Responses API.
    #[serde(rename = "OpenAICompatible")]
    OpenAiCompatible,
    /// claude-code-router in the session's pod: any of its upstreams, for agents that speak Anthropic's API.
    Router,
}

/// claude-code-router beside the agent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.upstreams.exists(u, u.name == self.routes.default.upstream)", "routes.default.upstream is not the name of one of router.upstreams"))]
#[x_kube(validation = ("!has(self.routes.background) || self.upstreams.exists(u, u.name == self.routes.background.upstream)", "routes.background.upstream is not the name of one of router.upstreams"))]
#[x_kube(validation = ("!has(self.routes.think) || self.upstreams.exists(u, u.name == self.routes.think.upstream)", "routes.think.upstream is not the name of one of router.upstreams"))]
#[x_kube(validation = ("!has(self.routes.longContext) || self.upstreams.exists(u, u.name == self.routes.longContext.upstream)", "routes.longContext.upstream is not the name of one of router.upstreams"))]
#[x_kube(validation = ("self.upstreams.filter(u, u.type == 'VertexGemini').size() <= 1", "a router has at most one upstream of type VertexGemini: it knows one Google project"))]
pub struct ModelRouter {
    /// Image with the router and the `agentapi-runtime` binary.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// Where requests may go.
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub upstreams: Vec<Upstream>,
    /// Which request goes where.
    pub routes: Routes,
}

/// One provider behind the router.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.type != 'OpenAICompatible' || has(self.baseUrl)", "an upstream of type OpenAICompatible needs baseUrl, for example https://openrouter.ai/api/v1"))]
#[x_kube(validation = ("self.type != 'VertexGemini' || (has(self.region) && has(self.projectId) && has(self.credentialsSecretRef))", "an upstream of type VertexGemini needs region, projectId and credentialsSecretRef (a Google credentials file)"))]
#[x_kube(validation = ("self.type == 'VertexGemini' || (!has(self.region) && !has(self.projectId))", "region and projectId belong to upstreams of type VertexGemini"))]
#[x_kube(validation = ("!(self.type in ['Anthropic', 'Gemini']) || has(self.credentialsSecretRef)", "an upstream of type Anthropic or Gemini needs credentialsSecretRef, the Secret and its key with the API key"))]
pub struct Upstream {
    /// What routes call it.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = ("self.matches('^[a-z]([a-z0-9-]*[a-z0-9])?$')", "an upstream's name is a-z, 0-9 and -, starting with a letter, for example google"))]
    pub name: String,
    /// What it speaks.
    #[serde(rename = "type")]
    pub r#type: UpstreamType,
    /// Base URL of its API. Left out: the provider's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = ("self.matches('^https?://[A-Za-z0-9.:-]+(/[A-Za-z0-9._~/-]*)?$')", "baseUrl is an http or https URL without user information, query and fragment, for example https://api.example.com/v1"))]
    pub base_url: Option<String>,
    /// Region of Vertex AI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = ("self.matches('^[a-z][a-z0-9-]*$')", "region is the name of a Google Cloud region, for example us-central1"))]
    pub region: Option<String>,
    /// Google Cloud project that Vertex AI bills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = ("self.matches('^[a-z0-9][a-z0-9:.-]*$')", "projectId is the id of a Google Cloud project, for example my-project"))]
    pub project_id: Option<String>,
    /// The key of a Secret in the tenant namespace with the API key or, for VertexGemini, with the credentials file as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretKeyRef>,
}

/// What an upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum UpstreamType {
    /// Anthropic's Messages API.
    Anthropic,
    /// `OpenAI`'s chat completions: OpenAI, OpenRouter, vLLM, Ollama and many more.
    #[serde(rename = "OpenAICompatible")]
    OpenAiCompatible,
    /// Google's Gemini API with an API key.
    Gemini,
    /// Gemini on Vertex AI.
    VertexGemini,
}

/// Which request goes where. What has no route of its own takes `default`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Routes {
    /// Everything else.
    pub default: Route,
    /// What the agent does on the side with a small model, such as titles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<Route>,
    /// Requests that ask for extended thinking; with its newer models Claude Code nearly always does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub think: Option<Route>,
    /// Requests of more than `longContextThreshold` tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_context: Option<Route>,
    /// Tokens from which on a request is long.
    #[serde(default = "default_threshold")]
    #[schemars(range(min = 1000, max = 10_000_000))]
    pub long_context_threshold: i32,
}

fn default_threshold() -> i32 {
    60_000
}

/// One model of one upstream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
pub struct Route {
    /// Name of the upstream.
    #[schemars(length(min = 1, max = 32))]
    pub upstream: String,
    /// Name of the model, as the upstream calls it.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = ("self.matches('^[A-Za-z0-9][A-Za-z0-9._:/@-]*$')", "a model's name is letters, digits and . _ : / @ -, for example gemini-2.5-pro"))]
    pub model: String,
}

impl Routes {
    /// Every route that is set.
    pub fn all(&self) -> impl Iterator<Item = &Route> {
        [Some(&self.default), self.background.as_ref(), self.think.as_ref(), self.long_context.as_ref()]
            .into_iter()
            .flatten()
    }
}
