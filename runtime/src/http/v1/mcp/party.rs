//! Who uses the gateway: a user with a JWT, or an agent with the token of its session's pod. May touch: `auth`, `store`.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;

use super::problem::no_such_configuration;
use crate::audit::{Client, Origin};
use crate::auth::{AuthError, Caller, Role};
use crate::http::error::Problem;
use crate::http::rate_limit::Slot;
use crate::http::{App, extract, held, internal};
use crate::mcp::service::{Loaded, McpError};
use crate::mcp::upstream::Target;
use crate::store::sessions::Phase;
use crate::store::{TenantScope, TenantTx};
use uuid::Uuid;

/// Somebody of a tenant.
#[derive(Clone)]
pub struct Party {
    /// The user, or the one whose session it is.
    pub(super) caller: Caller,
    /// Workspace of the session; a user has all of them.
    pub(super) workspace: Option<String>,
    /// As the audit log has it.
    pub(super) origin: Origin,
}

impl Party {
    /// The bearer of a JWT.
    pub(super) async fn user(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, app).await?;
        let Ok(client) = Client::from_request_parts(parts, app).await;
        let origin = client.origin(&caller.subject);
        Ok(Self { caller, workspace: None, origin })
    }

    /// The bearer of a session token: the session's own pod, while the session runs.
    pub(super) async fn session(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let invalid = || AuthError::Invalid("the session token is not valid".to_owned());
        let claims = app.tokens.verify_session(extract::bearer(&parts.headers)?).map_err(|_| invalid())?;
        let organization = app.store.organization_by_slug(&claims.org).await?.ok_or_else(invalid)?;
        let peer = internal::peer(app, &parts.extensions);
        let scope = TenantScope { platform: false, ..TenantScope::system(&organization) };
        let mut tx = app.store.tenant_tx(&scope).await?;
        let session = tx.session(claims.sub).await?;
        tx.commit().await?;
        let session = session.ok_or_else(invalid)?;
        internal::admit(&session, &claims, peer)?;
        // A suspended session has no pod that could call.
        if session.phase.is_over() || matches!(session.phase, Phase::Terminating | Phase::Suspended) {
            return Err(invalid().into());
        }
        let Ok(client) = Client::from_request_parts(parts, app).await;
        let caller = Caller {
            organization: Arc::new(organization),
            user_id: session.user_id,
            subject: session.id.to_string(),
            role: Role::User,
        };
        held::is_of(caller.organization.id);
        // What an agent sends counts like what its user does.
        app.rates.admit(&caller, &Slot::default(), &app.metrics)?;
        let origin = Origin { actor: format!("session:{}", session.id), client };
        Ok(Self { caller, workspace: Some(session.workspace), origin })
    }

    /// A connection that this one may use: for a session of another workspace it is not there.
    pub(super) async fn connection(&self, app: &App, tx: &mut TenantTx, id: Uuid) -> Result<Loaded, Problem> {
        let stored = tx.connection(id).await?;
        let mine = |workspace: &String| self.workspace.as_ref().is_none_or(|own| own == workspace);
        let stored = stored.filter(|stored| stored.workspace.as_ref().is_none_or(mine));
        let stored = stored.ok_or_else(no_such_configuration)?;
        Ok(app.mcp.read(&self.caller.organization, stored).map_err(McpError::from)?)
    }

    pub(super) fn target<'a>(&'a self, loaded: &'a Loaded) -> Target<'a> {
        let caller = &self.caller;
        Target { organization: &caller.organization, user: Some(caller.user_id), connection: &loaded.connection }
    }
}
