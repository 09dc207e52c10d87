//! The peculiarities of OAuth providers, as data: `providers.json`. Whoever is not there behaves as the RFCs say. Pure.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use agentapi_crds::mcp_connection::OauthProvider;
use serde::Deserialize;

/// How a provider wants to be spoken to.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kind {
    /// Its issuer, where a connection names none.
    pub issuer: Option<String>,
    /// Where it is, for one that publishes no metadata.
    pub endpoints: Option<Endpoints>,
    /// Scopes that make it give a refresh token.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Parameters of the authorization request that do the same, and that make it ask the user each time.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// The parameter that says for which server a token is: `resource` (RFC 8707), or the provider's own. None: it
    /// refuses or ignores such a parameter.
    pub resource_parameter: Option<String>,
    /// How clients authenticate, for one that publishes no metadata.
    pub client_authentication: Option<String>,
    /// Where tokens are revoked other than RFC 7009 says: DELETE with the client's credentials. Only where the issuer
    /// is the one above.
    pub revocation: Option<String>,
}

/// Addresses in which `{issuer}` is filled in.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoints {
    /// Where users agree.
    pub authorization: String,
    /// Where codes and refresh tokens are exchanged.
    pub token: String,
}

static TABLE: LazyLock<BTreeMap<String, Kind>> =
    LazyLock::new(|| serde_json::from_str(include_str!("providers.json")).unwrap_or_default());
static PLAIN: LazyLock<Kind> = LazyLock::new(Kind::default);

/// What is known about a provider.
pub fn kind(provider: OauthProvider) -> &'static Kind {
    TABLE.get(&format!("{provider:?}")).unwrap_or(&PLAIN)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_provider_of_the_resource_is_in_the_table_and_nobody_else() {
        let table: BTreeMap<String, Kind> = serde_json::from_str(include_str!("providers.json")).unwrap();
        let known = [
            OauthProvider::Github,
            OauthProvider::Google,
            OauthProvider::Azure,
            OauthProvider::Auth0,
            OauthProvider::Oidc,
        ];
        let mut names: Vec<String> = known.iter().map(|provider| format!("{provider:?}")).collect();
        names.sort();
        assert!(table.keys().eq(names.iter()), "{:?}", table.keys());
        // Whoever needs an issuer in the resource has none here, and each of the others has one.
        for provider in known {
            let in_resource = matches!(provider, OauthProvider::Auth0 | OauthProvider::Oidc);
            assert_eq!(kind(provider).issuer.is_none(), in_resource, "{provider:?}");
        }
    }
}
