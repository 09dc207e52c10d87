//! What a session is told: the policies of its organization and workspace, composed by `agentapi-prompts` from rows that
//! are read in the transaction that creates the session. Whether a text that was composed before is still right is
//! asked of Postgres each time, so an edit counts from the next session on. May touch: `store`, names of tools in `session`.

pub mod screening;

use std::sync::Arc;

use agentapi_prompts::compose::ComposeError;
use agentapi_prompts::{Cache, Composed, Facts, Generations, MAX_TOOLS, compose};

use crate::session::tools;
use crate::store::identity::Organization;
use crate::store::workspaces::Workspace;
use crate::store::{StoreError, TenantTx};

/// Bytes of composed texts that are kept; most texts are a few KB.
const CAPACITY: usize = 32 * 1024 * 1024;

/// Why a session can't be told anything, and so is not started.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// Postgres.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A policy.
    #[error(transparent)]
    Compose(#[from] ComposeError),
}

/// Composes prompts.
pub struct Prompts {
    cache: Cache,
}

impl Default for Prompts {
    fn default() -> Self {
        Self { cache: Cache::new(CAPACITY) }
    }
}

impl Prompts {
    /// What a session of this user in this workspace gets, as of this transaction.
    pub async fn compose(
        &self,
        tx: &mut TenantTx,
        organization: &Organization,
        workspace: &Workspace,
        user: &str,
    ) -> Result<Arc<Composed>, PromptError> {
        let now = tx.prompt_state(workspace.id).await?;
        let agent = &workspace.agent_type;
        let tools = if now.lists_tools {
            tools::names(agent, &tx.offered_tools(workspace.id, MAX_TOOLS).await?)
        } else {
            Vec::new()
        };
        let facts = Facts::new(&organization.slug, &workspace.name, user, agent, &now.date, &tools);
        if let Some(composed) = self.cache.get(&now.generations, &facts) {
            return Ok(composed);
        }
        let policies = tx.prompt_policies(workspace.id).await?;
        let composed = Arc::new(compose(&policies, &facts)?);
        // Of what was read, which may be newer than what was asked for.
        self.cache.put(Generations::of(&policies), facts, Arc::clone(&composed));
        Ok(composed)
    }
}
