//! Prepares an agent's start: its environment, its command, the files in its home. Writes only below the
//! home and the working folder.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use super::agents::{AgentProfile, Resume, SeedFile, SystemPrompt};

/// A file that could not be seeded.
#[derive(Debug, thiserror::Error)]
#[error("cannot prepare {path} for the agent: {source}; the home and work folders must be writable")]
pub struct SeedError {
    pub(super) path: String,
    pub(super) source: io::Error,
}

/// Values for the templates in agent files.
pub(super) struct Seeder<'a> {
    /// The agent's home.
    pub home: &'a Path,
    /// Where the agent works.
    pub workdir: &'a Path,
    /// The agent's environment.
    pub env: &'a BTreeMap<String, String>,
}

/// The agent's environment: the pod's without what concerns only the session host, then the agent's defaults
/// where the pod has nothing, then the claim's.
pub(super) fn environment(
    profile: &AgentProfile,
    pod: &BTreeMap<String, String>,
    claim: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> = pod
        .iter()
        .filter(|(name, _)| !name.starts_with("AGENTAPI_"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    env.insert("TERM".to_owned(), "xterm-256color".to_owned());
    for (name, value) in [("LANG", "C.UTF-8"), ("COLORTERM", "truecolor")] {
        env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    for (name, value) in &profile.env {
        env.entry(name.clone()).or_insert_with(|| value.clone());
    }
    env.extend(claim.iter().map(|(name, value)| (name.clone(), value.clone())));
    env
}

impl Seeder<'_> {
    /// Writes the agent's files.
    pub(super) fn seed(&self, profile: &AgentProfile) -> Result<(), SeedError> {
        profile.files.iter().try_for_each(|file| self.seed_file(file))
    }

    /// Puts the system prompt where the agent looks for it. Gives back the arguments that name its file.
    pub(super) fn system_prompt(&self, way: &SystemPrompt, text: &str, file: &Path) -> Result<Vec<String>, SeedError> {
        if let Some(path) = &way.path {
            let path = PathBuf::from(self.fill(path));
            let failed = |source| SeedError { path: path.display().to_string(), source };
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(failed)?;
            }
            super::state::write_atomically(&path, text.as_bytes()).map_err(failed)?;
        }
        let file = file.display().to_string();
        Ok(way.args.iter().map(|arg| arg.replace("{{file}}", &file)).collect())
    }

    /// The resume arguments apply: there is a conversation to go on with.
    pub(super) fn can_resume(&self, resume: &Resume) -> bool {
        has_file(&PathBuf::from(self.fill(&resume.folder)), &resume.extension, 6)
    }

    fn seed_file(&self, file: &SeedFile) -> Result<(), SeedError> {
        if file.only_with_env.as_ref().is_some_and(|name| self.env.get(name).is_none_or(String::is_empty)) {
            return Ok(());
        }
        let path = PathBuf::from(self.fill(&file.path));
        if let Some(json) = &file.json {
            edit_json(&path, |content| merge(content, self.fill_json(json)))?;
        }
        if let Some(text) = &file.text
            && !path.exists()
        {
            let failed = |source| SeedError { path: path.display().to_string(), source };
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(failed)?;
            }
            super::state::write_atomically(&path, self.fill(text).as_bytes()).map_err(failed)?;
        }
        Ok(())
    }

    fn fill_json(&self, value: &serde_json::Value) -> serde_json::Value {
        use serde_json::Value;
        match value {
            Value::String(text) => Value::String(self.fill(text)),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.fill_json(item)).collect()),
            Value::Object(map) => {
                Value::Object(map.iter().map(|(key, item)| (self.fill(key), self.fill_json(item))).collect())
            }
            other => other.clone(),
        }
    }

    /// Replaces `{{home}}`, `{{workdir}}`, `{{env.NAME}}` and `{{env.NAME|last20}}`.
    pub(super) fn fill(&self, template: &str) -> String {
        let mut filled = String::with_capacity(template.len());
        let mut rest = template;
        while let Some((text, tail)) = rest.split_once("{{") {
            let Some((name, after)) = tail.split_once("}}") else { break };
            filled.push_str(text);
            filled.push_str(&self.value(name));
            rest = after;
        }
        filled.push_str(rest);
        filled
    }

    fn value(&self, name: &str) -> String {
        match name {
            "home" => self.home.display().to_string(),
            "workdir" => self.workdir.display().to_string(),
            _ => {
                let (variable, last) = match name.strip_suffix("|last20") {
                    Some(variable) => (variable, Some(20)),
                    None => (name, None),
                };
                let value = variable.strip_prefix("env.").and_then(|v| self.env.get(v)).cloned().unwrap_or_default();
                let skip = last.map_or(0, |last| value.chars().count().saturating_sub(last));
                value.chars().skip(skip).collect()
            }
        }
    }
}

/// Changes a file that may hold JSON already, or makes it.
pub(super) fn edit_json(path: &Path, edit: impl FnOnce(&mut serde_json::Value)) -> Result<(), SeedError> {
    let failed = |source| SeedError { path: path.display().to_string(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut content = match std::fs::read(path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => value,
            Err(error) => {
                // Set aside: it must neither be lost nor keep the agent from starting.
                tracing::warn!(path = %path.display(), %error, "a file of the agent is damaged; set aside");
                std::fs::rename(path, path.with_extension("json.damaged")).map_err(failed)?;
                serde_json::json!({})
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => serde_json::json!({}),
        Err(error) => return Err(failed(error)),
    };
    edit(&mut content);
    let bytes = serde_json::to_vec_pretty(&content).map_err(io::Error::other).map_err(failed)?;
    super::state::write_atomically(path, &bytes).map_err(failed)
}

/// Objects are merged, arrays united, everything else replaced. In arrays, objects with the same `id` are the same one.
pub(super) fn merge(target: &mut serde_json::Value, from: serde_json::Value) {
    use serde_json::Value;
    match (target, from) {
        (Value::Object(target), Value::Object(from)) => {
            for (key, value) in from {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(target), Value::Array(from)) => {
            for value in from {
                let same =
                    |known: &Value| *known == value || value.get("id").is_some_and(|id| known.get("id") == Some(id));
                match target.iter().position(same) {
                    Some(known) => merge(&mut target[known], value),
                    None => target.push(value),
                }
            }
        }
        (target, from) => *target = from,
    }
}

fn has_file(folder: &Path, suffix: &str, depth: usize) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        let Ok(kind) = entry.file_type() else { return false };
        if kind.is_dir() {
            depth > 0 && has_file(&entry.path(), suffix, depth - 1)
        } else {
            entry.file_name().to_string_lossy().ends_with(suffix)
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::session::agents::profile;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn claude_is_seeded_and_what_it_wrote_itself_is_kept() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join(".claude.json");
        std::fs::write(&file, r#"{"numStartups": 3, "projects": {"/other": {"x": 1}}}"#).unwrap();
        let env = env(&[("ANTHROPIC_API_KEY", "sk-ant-0123456789abcdefghijKLMN")]);
        let seeder = Seeder { home: home.path(), workdir: Path::new("/work space"), env: &env };
        for _ in 0..2 {
            seeder.seed(&profile("claude").unwrap()).unwrap();
        }
        let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(written["numStartups"], 3);
        assert_eq!(written["projects"]["/other"]["x"], 1);
        assert_eq!(written["projects"]["/work space"]["hasTrustDialogAccepted"], true);
        assert_eq!(written["customApiKeyResponses"]["approved"], serde_json::json!(["456789abcdefghijKLMN"]));
    }

    #[test]
    fn the_system_prompt_reaches_claude_by_argument_and_codex_by_file() {
        let home = tempfile::tempdir().unwrap();
        let seeder = Seeder { home: home.path(), workdir: Path::new("/w"), env: &BTreeMap::new() };
        let file = Path::new("/state/system-prompt.md");
        let give =
            |agent: &str| seeder.system_prompt(&profile(agent).unwrap().system_prompt, "Be kind.", file).unwrap();
        assert_eq!(give("claude"), ["--append-system-prompt-file", "/state/system-prompt.md"]);
        assert_eq!(give("codex"), [""; 0]);
        assert_eq!(std::fs::read_to_string(home.path().join(".codex/AGENTS.md")).unwrap(), "Be kind.");
        assert_eq!(give("custom"), [""; 0]);
    }

    #[test]
    fn droid_is_seeded_again_without_a_second_model_and_with_the_new_key() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join(".factory/settings.json");
        for key in ["old-key", "new-key"] {
            let env =
                env(&[("ANTHROPIC_BASE_URL", "http://model"), ("ANTHROPIC_API_KEY", key), ("ANTHROPIC_MODEL", "m")]);
            let seeder = Seeder { home: home.path(), workdir: Path::new("/w"), env: &env };
            seeder.seed(&profile("droid").unwrap()).unwrap();
        }
        let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(written["customModels"].as_array().unwrap().len(), 1);
        assert_eq!(written["customModels"][0]["apiKey"], "new-key");
        assert!(written["trustedFolders"]["/w"].is_object());
    }

    #[test]
    fn a_damaged_file_does_not_keep_the_agent_from_starting() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join(".claude.json"), "{\"half\":").unwrap();
        let seeder = Seeder { home: home.path(), workdir: Path::new("/w"), env: &BTreeMap::new() };
        seeder.seed(&profile("claude").unwrap()).unwrap();
        let written = std::fs::read_to_string(home.path().join(".claude.json")).unwrap();
        assert!(written.contains("hasCompletedOnboarding"), "{written}");
        assert!(home.path().join(".claude.json.damaged").exists());
    }

    #[test]
    fn resume_needs_something_to_resume() {
        let home = tempfile::tempdir().unwrap();
        let seeder = Seeder { home: home.path(), workdir: Path::new("/w"), env: &BTreeMap::new() };
        let resume = profile("claude").unwrap().resume.unwrap();
        assert!(!seeder.can_resume(&resume));
        let folder = home.path().join(".claude/projects/-w");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("one.jsonl"), "{}").unwrap();
        assert!(seeder.can_resume(&resume));
    }

    #[test]
    fn the_hosts_own_variables_stay_with_the_host_and_the_claim_wins() {
        let pod =
            env(&[("AGENTAPI_SESSION_PUBLIC_KEY", "x"), ("PATH", "/bin"), ("A", "pod"), ("DISABLE_TELEMETRY", "0")]);
        let merged = environment(&profile("claude").unwrap(), &pod, &env(&[("A", "claim")]));
        assert_eq!(merged.get("AGENTAPI_SESSION_PUBLIC_KEY"), None);
        assert_eq!(merged["A"], "claim");
        assert_eq!(merged["PATH"], "/bin");
        assert_eq!(merged["DISABLE_TELEMETRY"], "0");
        assert_eq!(merged["TERM"], "xterm-256color");
    }
}
