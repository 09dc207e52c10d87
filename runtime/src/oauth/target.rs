//! What a consent is for: one connection of an organization. Pure.

use std::sync::Arc;

use agentapi_crds::mcp_connection::{McpAuth, McpTransport, OauthAuth};
use serde::Deserialize;
use uuid::Uuid;

use super::error::OauthError;
use super::providers::{self, Kind};
use crate::crypto::sealed::Place;
use crate::mcp::connection::{Auth, Connection, Origin, Transport};
use crate::outbound::Ranges;
use crate::store::identity::Organization;
use crate::store::oauth::TargetRow;

/// The part of a connection's spec that matters here.
#[derive(Deserialize)]
struct Spec {
    transport: McpTransport,
    #[serde(default)]
    auth: McpAuth,
}

/// A connection that uses OAuth.
#[derive(Debug, Clone)]
pub struct Target {
    /// Whose.
    pub organization: Arc<Organization>,
    /// Id of the connection.
    pub connection: Uuid,
    /// Its name.
    pub name: String,
    /// Who says what it is.
    pub origin: Origin,
    /// Its server, which tokens are for.
    pub resource: String,
    /// How it is authenticated to.
    pub oauth: OauthAuth,
    /// Address ranges that the organization opens.
    pub open: Ranges,
}

impl Target {
    /// A connection as a target. A program in a pod of ours has no OAuth.
    pub fn of(organization: Arc<Organization>, connection: &Connection) -> Result<Self, OauthError> {
        let Auth::Oauth(oauth) = &connection.auth else { return Err(OauthError::NotOauth) };
        let (Transport::StreamableHttp(url) | Transport::Sse(url)) = &connection.transport else {
            return Err(OauthError::NotOauth);
        };
        Ok(Self {
            organization,
            connection: connection.id,
            name: connection.name.clone(),
            origin: connection.origin,
            resource: url.clone(),
            oauth: (**oauth).clone(),
            open: connection.open.clone(),
        })
    }

    /// The same from its row.
    pub fn of_row(organization: Arc<Organization>, row: TargetRow) -> Result<Self, OauthError> {
        let spec = Spec::deserialize(&row.spec).map_err(|error| OauthError::Unusable(error.to_string()))?;
        let http = spec.transport.streamable_http.or(spec.transport.sse);
        let (Some(http), Some(oauth)) = (http, spec.auth.oauth) else { return Err(OauthError::NotOauth) };
        let open = Ranges::new(row.open.iter().filter_map(|range| range.parse().ok()));
        let TargetRow { id: connection, name, origin, .. } = row;
        Ok(Self { organization, connection, name, origin, resource: http.url, oauth, open })
    }

    /// How its provider wants to be spoken to.
    pub fn kind(&self) -> &'static Kind {
        providers::kind(self.oauth.provider)
    }

    /// The provider that an admin has named, or the only one there is; none: the server itself says who.
    pub fn issuer(&self) -> Option<&str> {
        self.oauth.issuer.as_deref().or(self.kind().issuer.as_deref())
    }

    /// Whether its provider is one that the platform knows by itself, such as github.com, and nobody has named another.
    pub fn is_at_a_platform_constant(&self) -> bool {
        self.oauth.issuer.is_none() && self.kind().issuer.is_some()
    }

    /// Whether tokens of this provider for this server still go with the connection as it is now. Whoever changes a
    /// connection's address must not get tokens that users gave for another.
    pub fn fits(&self, issuer: Option<&str>, resource: Option<&str>) -> bool {
        issuer.is_some_and(|issuer| self.issuer().is_none_or(|wanted| wanted == issuer))
            && resource == Some(self.resource.as_str())
    }

    /// Where a token of a user, or the organization's, is sealed.
    pub fn row(connection: Uuid, user: Option<Uuid>) -> String {
        match user {
            Some(user) => format!("{connection}/{user}"),
            None => format!("{connection}/shared"),
        }
    }
}

/// The place of an access token.
pub(super) fn access_place(row: &str) -> Place<'_> {
    Place { table: "mcp_oauth_tokens", column: "access_ciphertext", row }
}

/// The place of a refresh token.
pub(super) fn refresh_place(row: &str) -> Place<'_> {
    Place { table: "mcp_oauth_tokens", column: "refresh_ciphertext", row }
}

/// The place of a registered client.
pub(super) fn client_place(connection: &str) -> Place<'_> {
    Place { table: "oauth_clients", column: "client_ciphertext", row: connection }
}
