//! How a user agrees: `begin` makes a state and the provider's address, `page` and `leave` are for the browser in which
//! that is opened, and `answer` takes what the provider sends back and exchanges it. May touch: `oauth_states`,
//! `mcp_oauth_tokens`, the provider.

use std::sync::Arc;

use oauth2::basic::BasicClient;
use oauth2::{AuthUrl, ClientId, CsrfToken, PkceCodeChallenge, RedirectUrl, Scope};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::json;
use url::Url;
use uuid::Uuid;

use super::OAuth;
use super::discovery::{Protected, Server};
use super::error::OauthError;
use super::exchange::{Exchange, ExchangeError, MOST_SCOPES, code, is_scope};
use super::state::{State, place};
use super::target::Target;
use crate::audit::{Client, Entry, Origin, action};
use crate::auth::{Caller, Role};
use crate::store::identity::Organization;
use crate::store::oauth::grants::NewGrant;
use crate::store::oauth::states::StateRow;
use crate::store::{TenantScope, TenantTx};

/// Consents of one user that may be under way.
const MOST_PER_USER: i64 = 20;
const OFFLINE: &str = "offline_access";

/// What somebody wants to agree to.
#[derive(Debug)]
pub struct Wish {
    /// For this connection.
    pub connection: Uuid,
    /// For all of the organization.
    pub shared: bool,
    /// Where the user goes afterwards.
    pub return_to: Option<Url>,
}

/// A consent that has begun.
#[derive(Debug)]
pub struct Begun {
    /// Where the user goes.
    pub url: Url,
    /// When it ends (RFC 3339).
    pub expires_at: String,
}

/// What is sealed in a state.
#[derive(Serialize, Deserialize)]
struct Consent {
    verifier: String,
    issuer: String,
    authorization_url: Url,
    resource: String,
    audience: Option<String>,
    scopes: Vec<String>,
    name: String,
    subject: String,
    shared: bool,
    return_to: Option<Url>,
}

/// What a consent is about, for the page on which it begins.
#[derive(Debug)]
pub struct Page {
    /// Name of the connection.
    pub connection: String,
    /// Whose calls will be made with it.
    pub subject: String,
    /// Name of the organization.
    pub organization: String,
    /// Whether everybody of the organization will.
    pub shared: bool,
    /// Host of the provider.
    pub provider: String,
    /// Where the user goes afterwards.
    pub return_to: Option<Url>,
}

/// What a provider sends back with a user.
#[derive(Debug, Default, Deserialize)]
pub struct Answer {
    /// To be exchanged.
    pub code: Option<SecretString>,
    /// Why there is no code.
    pub error: Option<String>,
    /// Who answers (RFC 9207).
    pub iss: Option<String>,
}

impl OAuth {
    /// Begins a consent.
    pub async fn begin(&self, caller: &Caller, client: &Client, wish: Wish) -> Result<Begun, OauthError> {
        if wish.return_to.as_ref().is_some_and(|url| !self.return_origins.contains(&url.origin())) {
            return Err(OauthError::Redirect);
        }
        let mut tx = self.store.tenant_tx(&caller.scope()).await?;
        let target = self.target(&mut tx, &caller.organization, wish.connection).await?;
        let pending = tx.states_of(caller.user_id).await?;
        tx.commit().await?;
        if pending >= MOST_PER_USER {
            return Err(OauthError::TooMany);
        }

        let (issuer, protected) = self.issuer(&target).await?;
        let server = self.discovery.server(&target, &issuer).await?;
        let callback = self.callback_of(&target);
        let identity = self.client(&target, &server, Some(&callback)).await?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let scopes = scopes(&target, &server, &protected);
        let kind = target.kind();
        let named = Some(protected.resource).filter(|resource| !resource.is_empty());
        let audience = kind.resource_parameter.as_ref().map(|_| named.unwrap_or_else(|| target.resource.clone()));

        let state = State::new(&caller.organization.slug);
        let oauth2 = BasicClient::new(ClientId::new(identity.id))
            .set_auth_uri(AuthUrl::from_url(server.authorization_endpoint.clone()))
            .set_redirect_uri(RedirectUrl::from_url(callback.clone()));
        let text = state.text().to_owned();
        let mut request = oauth2
            .authorize_url(move || CsrfToken::new(text))
            .set_pkce_challenge(challenge)
            .add_scopes(scopes.iter().cloned().map(Scope::new));
        for (name, value) in &kind.parameters {
            request = request.add_extra_param(name, value);
        }
        if let (Some(name), Some(value)) = (&kind.resource_parameter, &audience) {
            request = request.add_extra_param(name, value);
        }
        let (authorization_url, _) = request.url();

        let consent = Consent {
            verifier: verifier.into_secret(),
            issuer,
            authorization_url,
            resource: target.resource.clone(),
            audience,
            scopes,
            name: target.name.clone(),
            subject: caller.subject.clone(),
            shared: wish.shared,
            return_to: wish.return_to,
        };
        let (hash, mut tx) = (state.hash(), self.store.tenant_tx(&caller.scope()).await?);
        let text = SecretString::from(serde_json::to_string(&consent).unwrap_or_default());
        let sealed = self.keys(&mut tx).await?.seal(&place(&hex::encode(hash)), &text)?;
        let expires_at = tx.add_state(&hash, target.connection, caller.user_id, &sealed, callback.as_str()).await?;
        let origin = client.origin(&caller.subject);
        self.record(&mut tx, &origin, action::OAUTH_BEGIN, target.connection, &consent, None).await?;
        tx.commit().await?;
        let mut url = self.public_url.clone();
        url.set_path(&format!("{}{}", self.public_url.path().trim_end_matches('/'), super::CONNECT_PATH));
        url.query_pairs_mut().append_pair("state", state.text());
        Ok(Begun { url, expires_at })
    }

    /// Who gives tokens for a connection's server, and what the server says about itself if it had to be asked.
    async fn issuer(&self, target: &Target) -> Result<(String, Protected), OauthError> {
        if let Some(issuer) = target.issuer() {
            return Ok((issuer.to_owned(), Protected::default()));
        }
        let protected = self.discovery.protected(target).await?;
        match protected.authorization_servers.first() {
            Some(issuer) => Ok((issuer.clone(), protected)),
            None => Err(OauthError::Unusable(format!(
                "{} names nobody who gives tokens for it; name the provider in auth.oauth.issuer of the connection",
                target.resource
            ))),
        }
    }

    /// What a consent under way is about.
    pub async fn page(&self, state: &State) -> Result<Page, OauthError> {
        let (organization, consent) = self.under_way(state).await?;
        Ok(Page {
            connection: consent.name,
            subject: consent.subject,
            organization: organization.slug.clone(),
            shared: consent.shared,
            provider: consent.authorization_url.host_str().unwrap_or_default().to_owned(),
            return_to: consent.return_to,
        })
    }

    /// Where the browser goes that has shown the page.
    pub async fn leave(&self, state: &State) -> Result<Url, OauthError> {
        Ok(self.under_way(state).await?.1.authorization_url)
    }

    async fn under_way(&self, state: &State) -> Result<(Arc<Organization>, Consent), OauthError> {
        let organization = self.organization(state).await?;
        let mut tx = self.store.tenant_tx(&nobody(&organization)).await?;
        let row = tx.state(&state.hash()).await?.ok_or(OauthError::State)?;
        let consent = self.consent(&mut tx, state, &row).await?;
        tx.commit().await?;
        Ok((organization, consent))
    }

    async fn organization(&self, state: &State) -> Result<Arc<Organization>, OauthError> {
        self.store.organization_by_slug(state.slug()).await?.map(Arc::new).ok_or(OauthError::State)
    }

    async fn consent(&self, tx: &mut TenantTx, state: &State, row: &StateRow) -> Result<Consent, OauthError> {
        let keys = self.keys(tx).await?;
        let text = keys.open(&place(&hex::encode(state.hash())), &row.sealed)?;
        serde_json::from_str(text.expose_secret()).map_err(|_| OauthError::State)
    }

    /// Takes a provider's answer, which came to the address of this connection or to the one for all; gives back the name
    /// of the connection. The state is used up, whatever comes.
    pub async fn answer(
        &self,
        client: &Client,
        state: &State,
        came_to: Option<Uuid>,
        answer: Answer,
    ) -> Result<String, OauthError> {
        let organization = self.organization(state).await?;
        let mut tx = self.store.tenant_tx(&nobody(&organization)).await?;
        let row = tx.take_state(&state.hash()).await?.ok_or(OauthError::State)?;
        let consent = self.consent(&mut tx, state, &row).await?;
        tx.commit().await?;

        let origin = client.origin(&consent.subject);
        let scope = TenantScope {
            user_id: Some(row.user),
            role: if consent.shared { Role::Admin } else { Role::User },
            ..nobody(&organization)
        };
        let callback = self.callback(came_to);
        let exchanged = if row.redirect_uri == callback.as_str() {
            self.exchange(&organization, &scope, &row, &consent, &callback, answer).await
        } else {
            Err(OauthError::Callback)
        };
        let mut tx = self.store.tenant_tx(&scope).await?;
        match exchanged {
            Ok((target, tokens)) => {
                let user = (!consent.shared).then_some(row.user);
                let mut sealed = self.seal(&mut tx, row.connection, user, &tokens, tokens.refresh.as_ref()).await?;
                // RFC 6749, 5.1: nothing said means what was asked for.
                sealed.scopes.get_or_insert_with(|| consent.scopes.clone());
                let grant = NewGrant {
                    connection: row.connection,
                    user,
                    issuer: &consent.issuer,
                    resource: &consent.resource,
                    audience: consent.audience.as_deref(),
                };
                tx.put_grant(&grant, &sealed).await?;
                self.record(&mut tx, &origin, action::OAUTH_GRANT, row.connection, &consent, None).await?;
                tx.commit().await?;
                self.metrics.oauth_exchange("code", "ok");
                Ok(target.name)
            }
            Err(error) => {
                let why = match &error {
                    OauthError::Denied => "denied",
                    OauthError::Issuer => "issuer",
                    OauthError::Callback => "callback",
                    OauthError::ProviderDown { .. } => "provider-down",
                    _ => "refused",
                };
                self.record(&mut tx, &origin, action::OAUTH_REFUSE, row.connection, &consent, Some(why)).await?;
                tx.commit().await?;
                self.metrics.oauth_exchange("code", if why == "denied" { "denied" } else { "error" });
                Err(error)
            }
        }
    }

    async fn exchange(
        &self,
        organization: &Arc<Organization>,
        scope: &TenantScope<'_>,
        row: &StateRow,
        consent: &Consent,
        callback: &Url,
        answer: Answer,
    ) -> Result<(Target, super::exchange::Tokens), OauthError> {
        let mut tx = self.store.tenant_tx(scope).await?;
        let target = self.target(&mut tx, organization, row.connection).await?;
        tx.commit().await?;
        if !target.fits(Some(&consent.issuer), Some(&consent.resource)) {
            let why = "the connection was changed while you were away; begin again".to_owned();
            return Err(OauthError::Unusable(why));
        }
        let server = self.discovery.server(&target, &consent.issuer).await?;
        let named = answer.iss.as_deref();
        if named.map_or(server.authorization_response_iss_parameter_supported, |iss| !server.is_issuer(iss)) {
            return Err(OauthError::Issuer);
        }
        let code = match (answer.code, answer.error) {
            (Some(code), None) => code,
            (_, Some(error)) if error == "access_denied" => return Err(OauthError::Denied),
            (_, Some(error)) => {
                return Err(OauthError::Unusable(format!("the provider refuses: {}", self::code(&error))));
            }
            (None, None) => return Err(OauthError::State),
        };
        let client = self.client(&target, &server, None).await?;
        let exchange = Exchange { net: &self.net, target: &target, server: &server, client: &client };
        let audience = target.kind().resource_parameter.as_deref().zip(consent.audience.as_deref());
        let verifier = SecretString::from(consent.verifier.as_str());
        let tokens = exchange.code(code.expose_secret(), &verifier, callback, audience).await;
        match tokens {
            Ok(tokens) => Ok((target, tokens)),
            Err(ExchangeError::Net(error)) => Err(error.into()),
            Err(error) => Err(OauthError::Unusable(format!("no token: {error}"))),
        }
    }

    async fn record(
        &self,
        tx: &mut TenantTx,
        origin: &Origin,
        action: &'static str,
        connection: Uuid,
        consent: &Consent,
        why: Option<&str>,
    ) -> Result<(), OauthError> {
        let mut detail = json!({ "issuer": consent.issuer, "scopes": consent.scopes, "shared": consent.shared });
        if let Some(why) = why {
            detail["reason"] = why.into();
        }
        tx.audit(&Entry {
            origin,
            action,
            target_kind: "connection",
            target_id: Some(&connection.to_string()),
            detail,
        })
        .await?;
        Ok(())
    }
}

/// Nobody has shown who they are: the state alone leads to its row, within the organization that it names.
fn nobody(organization: &Organization) -> TenantScope<'_> {
    TenantScope { platform: false, ..TenantScope::system(organization) }
}

/// What to ask for: what the connection says, else what the server says; and what makes a refresh token.
fn scopes(target: &Target, server: &Server, protected: &Protected) -> Vec<String> {
    let own = &target.oauth.scopes;
    let mut scopes = if own.is_empty() { protected.scopes_supported.clone() } else { own.clone() };
    for more in &target.kind().scopes {
        let known = server.scopes_supported.as_ref().is_none_or(|supported| supported.contains(more));
        // Providers that know no offline_access give a refresh token without it, or none.
        if !scopes.contains(more) && (known || more != OFFLINE) {
            scopes.push(more.clone());
        }
    }
    // What a server says of itself is kept and shown.
    scopes.retain(|scope| is_scope(scope));
    scopes.truncate(MOST_SCOPES);
    scopes
}
