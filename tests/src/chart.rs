//! Harness of the chart tests: renders a chart with the real helm and gives its objects. May touch: the helm program.
use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// Namespace that the charts are rendered for.
pub const NAMESPACE: &str = "agentapi-system";

/// A path in the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A program named by the environment variable `variable`, or found on `PATH`.
pub fn program(variable: &str, name: &str) -> anyhow::Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Ok(path.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file()).with_context(|| {
        format!("{name} is not on PATH; run the tests with `cargo xtask test`, or set {variable} to the program")
    })
}

/// Renders charts/agentapi with `--set` for each of `settings`; the error is what helm printed.
pub fn render(settings: &[&str]) -> anyhow::Result<Vec<Value>> {
    let mut command = Command::new(program("HELM", "helm")?);
    command.args(["template", "agentapi"]).arg(repository("charts/agentapi"));
    // helm built without its release script believes in an ancient Kubernetes when it renders without a cluster.
    command.args(["--namespace", NAMESPACE, "--kube-version", "1.34.4"]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    let output = command.output().context("running helm")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout)?;
    let mut objects = Vec::new();
    for document in serde_yaml::Deserializer::from_str(&text) {
        let object = Value::deserialize(document)?;
        if !object.is_null() {
            objects.push(object);
        }
    }
    Ok(objects)
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Objects of one kind.
pub fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

/// Name and template of every object that makes pods.
pub fn pod_templates(objects: &[Value]) -> Vec<(&str, &Value)> {
    let templates = objects.iter().filter(|object| object["spec"]["template"]["spec"]["containers"].is_array());
    templates.map(|object| (name(object), &object["spec"]["template"])).collect()
}

/// Init containers and containers of a pod template.
pub fn containers(template: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().flat_map(|key| items(&template["spec"][key]))
}

/// Items of an array; none when it is missing.
pub fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Strings of an array.
pub fn strings(value: &Value) -> Vec<&str> {
    items(value).iter().filter_map(Value::as_str).collect()
}

/// Whether a label selector (equality and `In`) selects `labels`.
pub fn selects(selector: &Value, labels: &Value) -> bool {
    let equal = selector["matchLabels"].as_object().or_else(|| {
        // A Service's selector is the map itself.
        selector.as_object().filter(|map| !map.contains_key("matchLabels") && !map.contains_key("matchExpressions"))
    });
    let equal = equal.is_none_or(|wanted| wanted.iter().all(|(key, value)| labels[key] == *value));
    let within = items(&selector["matchExpressions"]).iter().all(|expression| {
        let label = expression["key"].as_str().map_or(&Value::Null, |key| &labels[key]);
        expression["operator"] == "In" && items(&expression["values"]).contains(label)
    });
    equal && within
}
