//! The real provider (npm oidc-provider, `images/oidc`) as a local process. `cargo xtask test` brings Node.js and the
//! packages (`NODE`, `OIDC_MODULES`); by hand, `node` and `npm` on PATH do.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::gate::Gate;
use crate::agents;
use crate::cluster::eventually;

const IMAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/oidc");

/// What it has printed.
const LOG: &str = "log";

/// A running provider.
pub struct Oidc {
    /// Its issuer, which is the address of the gate.
    pub issuer: String,
    /// Close it and the provider is down.
    pub gate: Gate,
    process: Child,
    folder: TempDir,
}

impl Oidc {
    /// With one confidential client for each way to authenticate, and one public one, all sent back to one of `callbacks`.
    pub async fn start(callbacks: &[String]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let modules = agents::modules("oidc")?;
        std::os::unix::fs::symlink(modules.join("node_modules"), folder.path().join("node_modules"))?;
        for file in ["server.mjs", "clients.json", "package.json"] {
            std::fs::copy(Path::new(IMAGE).join(file), folder.path().join(file))?;
        }
        let client = |method: &str| {
            let mut client = json!({
                "client_id": method, "token_endpoint_auth_method": method, "redirect_uris": callbacks,
                "grant_types": ["authorization_code", "refresh_token"], "response_types": ["code"],
            });
            if method != "none" {
                client["client_secret"] = format!("secret-of-{method}-with:odd/characters+").into();
            }
            client
        };
        let clients = ["client_secret_basic", "client_secret_post", "none"].map(client);
        std::fs::write(folder.path().join("more.json"), serde_json::to_string(&clients)?)?;

        let port = crate::ports::reserve()?;
        let gate = Gate::start(([127, 0, 0, 1], port).into()).await?;
        let issuer = format!("http://{}", gate.address);
        let process = Command::new(agents::node())
            .arg("server.mjs")
            .current_dir(folder.path())
            .env("OIDC_ISSUER", &issuer)
            .env("OIDC_PORT", port.to_string())
            .env("OIDC_MORE_CLIENTS_FILE", folder.path().join("more.json"))
            // Whoever reads a pipe may be late; in a file a line is there before the answer that it is about.
            .stdout(std::fs::File::create(folder.path().join(LOG))?)
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start Node.js; put node on PATH or its path into NODE")?;
        let oidc = Self { issuer, gate, process, folder };
        let discovery = format!("{}/.well-known/openid-configuration", oidc.issuer);
        let http = reqwest::Client::builder().no_proxy().build()?;
        eventually("the provider's metadata", Duration::from_secs(60), async || {
            Ok(match http.get(&discovery).send().await {
                Ok(answer) if answer.status().is_success() => Ok(()),
                other => Err(format!("{other:?}")),
            })
        })
        .await?;
        Ok(oidc)
    }

    /// The secret of one of its confidential clients.
    pub fn secret(client: &str) -> String {
        format!("secret-of-{client}-with:odd/characters+")
    }

    /// How often something was done, such as `{"event": "grant", "type": "refresh_token"}`.
    pub fn count(&self, wanted: &Value) -> usize {
        let log = std::fs::read_to_string(self.folder.path().join(LOG)).unwrap_or_default();
        let fits =
            |line: &Value| wanted.as_object().is_some_and(|all| all.iter().all(|(key, value)| line[key] == *value));
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(fits).count()
    }

    /// How many refresh tokens were exchanged.
    pub fn refreshes(&self) -> usize {
        self.count(&json!({"event": "grant", "type": "refresh_token"}))
    }
}

impl Drop for Oidc {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
