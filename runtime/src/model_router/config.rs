//! The router's configuration: what the operator wrote, and what only this process knows. Pure.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The router reads its password from this variable.
pub(super) const PASSWORD: &str = "AGENTAPI_ROUTER_PASSWORD";

/// What the operator wrote: upstreams and routes in claude-code-router's words.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Configuration {
    #[serde(rename = "Providers")]
    providers: Vec<Provider>,
    #[serde(rename = "Router")]
    router: Map<String, Value>,
    #[serde(rename = "API_TIMEOUT_MS")]
    timeout: u64,
}

/// An upstream. Only what we read is typed; the rest goes through as it is.
#[derive(Clone, Debug, Deserialize)]
struct Provider {
    name: String,
    models: Vec<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Configuration {
    /// Reads it; says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("not set".into());
        }
        let parsed: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if parsed.providers.is_empty() || !parsed.router.contains_key("default") {
            return Err("there is no upstream, or no default route".into());
        }
        Ok(parsed)
    }

    /// How many upstreams there are.
    pub(super) fn upstreams(&self) -> usize {
        self.providers.len()
    }

    /// Models by the names with which a request may choose one: `upstream,model`.
    pub(super) fn models(&self) -> impl Iterator<Item = String> {
        self.providers.iter().flat_map(|it| it.models.iter().map(move |model| format!("{},{model}", it.name)))
    }

    /// The file for a router that listens on `port`. It logs nothing: its logs hold whole conversations.
    pub(super) fn of_router(&self, port: u16) -> Value {
        let providers: Vec<Value> = self
            .providers
            .iter()
            .map(|provider| {
                let mut map = provider.rest.clone();
                map.insert("name".into(), json!(provider.name));
                map.insert("models".into(), json!(provider.models));
                Value::Object(map)
            })
            .collect();
        json!({
            "HOST": "127.0.0.1", "PORT": port, "APIKEY": format!("${PASSWORD}"), "LOG": false, "NON_INTERACTIVE_MODE": true,
            "API_TIMEOUT_MS": self.timeout, "Providers": providers, "Router": self.router,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = r#"{"API_TIMEOUT_MS": 600000, "Providers": [{"name": "google", "api_base_url": "https://x/", "api_key":
        "$AGENTAPI_MODEL_KEY_0", "models": ["gemini-2.5-pro"], "transformer": {"use": ["gemini"]}}],
        "Router": {"default": "google,gemini-2.5-pro", "longContextThreshold": 60000}}"#;

    #[test]
    fn the_file_is_what_the_operator_wrote_with_a_place_a_password_and_no_log() {
        let configuration = Configuration::parse(GOOD).unwrap();
        let file = configuration.of_router(3458);
        assert_eq!((&file["HOST"], &file["PORT"], &file["LOG"]), (&json!("127.0.0.1"), &json!(3458), &json!(false)));
        assert_eq!(file["APIKEY"], "$AGENTAPI_ROUTER_PASSWORD");
        assert_eq!(file["Providers"], serde_json::from_str::<Value>(GOOD).unwrap()["Providers"]);
        assert_eq!(configuration.models().collect::<Vec<_>>(), ["google,gemini-2.5-pro"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["", "{}", "[]", r#"{"API_TIMEOUT_MS": 1, "Providers": [], "Router": {"default": "a,b"}}"#] {
            assert!(Configuration::parse(text).is_err(), "{text}");
        }
        let with_path = GOOD.replacen('{', r#"{"CUSTOM_ROUTER_PATH": "/x.js", "#, 1);
        assert!(Configuration::parse(&with_path).unwrap_err().contains("CUSTOM_ROUTER_PATH"));
    }
}
