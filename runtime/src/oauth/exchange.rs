//! The token endpoint: codes and refresh tokens become tokens; and the revocation endpoint. May touch: `net`.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method as Verb, Request, Response, StatusCode};
use oauth2::basic::{BasicClient, BasicErrorResponse, BasicErrorResponseType, BasicTokenResponse};
use oauth2::{
    AsyncHttpClient, AuthType, AuthorizationCode, ClientId, ClientSecret, EndpointNotSet, EndpointSet,
    PkceCodeVerifier, RedirectUrl, RefreshToken, RequestTokenError, TokenResponse, TokenUrl,
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use url::{Url, form_urlencoded};

use super::client::{ClientCredentials, Method};
use super::discovery::Server;
use super::net::{Net, NetError};
use super::target::Target;

/// What an exchange brings.
#[derive(Debug)]
pub struct Tokens {
    /// For the MCP server.
    pub access: SecretString,
    /// For the next exchange; none: the one before stays good.
    pub refresh: Option<SecretString>,
    /// How long the access token is good; none: the provider does not say.
    pub expires_in: Option<Duration>,
    /// What it is good for; none: what was asked for.
    pub scopes: Option<Vec<String>>,
}

/// Why an exchange brings nothing.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The code or the refresh token is good no longer.
    #[error("the provider says that it is good no longer")]
    InvalidGrant,
    /// The provider refuses us, by this code of RFC 6749.
    #[error("the provider refuses: {0}")]
    Refused(String),
    /// The provider can't be asked.
    #[error(transparent)]
    Net(#[from] NetError),
}

impl ExchangeError {
    fn is_about_the_client(&self) -> bool {
        matches!(self, Self::Refused(code) if code == INVALID_CLIENT)
    }
}

/// An access token is taken to be good for no longer.
const LONGEST_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// What a provider says about scopes is kept up to here.
pub(super) const MOST_SCOPES: usize = 100;
const MAX_SCOPE_BYTES: usize = 256;
const INVALID_CLIENT: &str = "invalid_client";

type Client = BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

/// One token endpoint, and who we are there.
pub struct Exchange<'a> {
    /// The way there.
    pub net: &'a Net,
    /// The connection.
    pub target: &'a Target,
    /// The provider.
    pub server: &'a Server,
    /// Who we are.
    pub client: &'a ClientCredentials,
}

impl Exchange<'_> {
    /// How we authenticate, the most likely way first: a provider that takes both often takes only one from a client,
    /// and its metadata does not say which.
    fn methods(&self) -> &'static [Method] {
        match self.client.method {
            Method::Basic => &[Method::Basic, Method::Post],
            Method::Post => &[Method::Post],
            Method::None => &[Method::None],
        }
    }

    fn oauth2(&self, method: Method) -> Client {
        let mut client = BasicClient::new(ClientId::new(self.client.id.clone()));
        if let Some(secret) = &self.client.secret {
            client = client.set_client_secret(ClientSecret::new(secret.expose_secret().to_owned()));
        }
        let kind = if method == Method::Basic { AuthType::BasicAuth } else { AuthType::RequestBody };
        client.set_auth_type(kind).set_token_uri(TokenUrl::from_url(self.server.token_endpoint.clone()))
    }

    /// A code becomes tokens. `audience`: the server that they are for, by the provider's name for that parameter.
    pub async fn code(
        &self,
        code: &str,
        verifier: &SecretString,
        callback: &Url,
        audience: Option<(&str, &str)>,
    ) -> Result<Tokens, ExchangeError> {
        let mut refused = ExchangeError::Refused(INVALID_CLIENT.to_owned());
        for method in self.methods() {
            let client = self.oauth2(*method).set_redirect_uri(RedirectUrl::from_url(callback.clone()));
            let mut request = client
                .exchange_code(AuthorizationCode::new(code.to_owned()))
                .set_pkce_verifier(PkceCodeVerifier::new(verifier.expose_secret().to_owned()));
            if let Some((name, value)) = audience {
                request = request.add_extra_param(name, value);
            }
            match tokens(request.request_async(&Sender { net: self.net, target: self.target }).await) {
                Err(error) if error.is_about_the_client() => refused = error,
                answered => return answered,
            }
        }
        Err(refused)
    }

    /// A refresh token becomes tokens.
    pub async fn refresh(
        &self,
        refresh: &SecretString,
        audience: Option<(&str, &str)>,
    ) -> Result<Tokens, ExchangeError> {
        let mut refused = ExchangeError::Refused(INVALID_CLIENT.to_owned());
        let refresh = RefreshToken::new(refresh.expose_secret().to_owned());
        for method in self.methods() {
            let client = self.oauth2(*method);
            let mut request = client.exchange_refresh_token(&refresh);
            if let Some((name, value)) = audience {
                request = request.add_extra_param(name, value);
            }
            match tokens(request.request_async(&Sender { net: self.net, target: self.target }).await) {
                Err(error) if error.is_about_the_client() => refused = error,
                answered => return answered,
            }
        }
        Err(refused)
    }

    /// Tells the provider that a token is used no longer. False: it has no way to be told.
    pub async fn revoke(&self, token: &SecretString, hint: &str) -> Result<bool, NetError> {
        let kind = self.target.kind();
        let answer = match (&self.server.revocation_endpoint, &kind.revocation) {
            (Some(endpoint), _) => self.revoke_as_rfc_7009_says(endpoint, token, hint).await?,
            (None, Some(template)) if self.target.issuer() == kind.issuer.as_deref() => {
                let id: String = form_urlencoded::byte_serialize(self.client.id.as_bytes()).collect();
                let url = self.net.check(&template.replace("{client}", &id), &self.target.open)?;
                let body = json!({ "access_token": token.expose_secret() }).to_string();
                self.ask(Verb::DELETE, &url, "application/json", body, true).await?
            }
            _ => return Ok(false),
        };
        if answer.status().is_success() {
            return Ok(true);
        }
        let host = self.server.token_endpoint.host_str().unwrap_or_default().to_owned();
        Err(NetError::Trouble { host, status: answer.status(), retry_after: None })
    }

    async fn revoke_as_rfc_7009_says(
        &self,
        endpoint: &Url,
        token: &SecretString,
        hint: &str,
    ) -> Result<Response<Vec<u8>>, NetError> {
        let mut methods = self.methods().iter().peekable();
        loop {
            let basic = methods.next() == Some(&Method::Basic);
            let mut fields = vec![("token", token.expose_secret()), ("token_type_hint", hint)];
            if !basic {
                fields.push(("client_id", &self.client.id));
                fields.extend(self.client.secret.as_ref().map(|secret| ("client_secret", secret.expose_secret())));
            }
            let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
            let answer = self.ask(Verb::POST, endpoint, "application/x-www-form-urlencoded", form, basic).await?;
            if answer.status() != StatusCode::UNAUTHORIZED || methods.peek().is_none() {
                return Ok(answer);
            }
        }
    }

    async fn ask(
        &self,
        verb: Verb,
        url: &Url,
        kind: &str,
        body: String,
        basic: bool,
    ) -> Result<Response<Vec<u8>>, NetError> {
        let mut request = Request::builder().method(verb).uri(url.as_str());
        request = request.header(ACCEPT, "application/json").header(CONTENT_TYPE, kind);
        if basic {
            // RFC 6749, 2.3.1: both are encoded like parts of a form first.
            let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            let secret = self.client.secret.as_ref().map(|secret| encode(secret.expose_secret())).unwrap_or_default();
            let value = format!("Basic {}", STANDARD.encode(format!("{}:{secret}", encode(&self.client.id))));
            if let Ok(mut value) = HeaderValue::from_str(&value) {
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
        }
        let document = |error: http::Error| NetError::Document { url: url.to_string(), why: error.to_string() };
        self.net.send(&self.target.open, request.body(body.into_bytes()).map_err(document)?).await
    }
}

/// What oauth2 sends its requests with.
struct Sender<'a> {
    net: &'a Net,
    target: &'a Target,
}

impl<'c> AsyncHttpClient<'c> for Sender<'_> {
    type Error = NetError;
    type Future = BoxFuture<'c, Result<Response<Vec<u8>>, NetError>>;

    fn call(&'c self, request: Request<Vec<u8>>) -> Self::Future {
        self.net.send(&self.target.open, request).boxed()
    }
}

type Answered = Result<BasicTokenResponse, RequestTokenError<NetError, BasicErrorResponse>>;

fn tokens(answered: Answered) -> Result<Tokens, ExchangeError> {
    let answer = answered.map_err(|error| match error {
        RequestTokenError::Request(error) => ExchangeError::Net(error),
        RequestTokenError::ServerResponse(refusal) => match refusal.error() {
            BasicErrorResponseType::InvalidGrant => ExchangeError::InvalidGrant,
            other => ExchangeError::Refused(code(other.as_ref())),
        },
        // GitHub refuses with 200.
        RequestTokenError::Parse(_, body) => match serde_json::from_slice::<Refusal>(&body) {
            Ok(Refusal { error }) if is_invalid_grant(&error) => ExchangeError::InvalidGrant,
            Ok(Refusal { error }) => ExchangeError::Refused(code(&error)),
            Err(_) => ExchangeError::Refused("its answer is none of RFC 6749".to_owned()),
        },
        RequestTokenError::Other(_) => ExchangeError::Refused("its answer is none of RFC 6749".to_owned()),
    })?;
    if !answer.token_type().as_ref().eq_ignore_ascii_case("bearer") {
        return Err(ExchangeError::Refused("its tokens are not of type Bearer".to_owned()));
    }
    Ok(Tokens {
        access: SecretString::from(answer.access_token().secret().clone()),
        refresh: answer.refresh_token().map(|token| SecretString::from(token.secret().clone())),
        // Longer than anybody means, or longer than there is time for: it is asked for again before that.
        expires_in: answer.expires_in().map(|lives| lives.min(LONGEST_LIFE)),
        scopes: answer.scopes().map(|scopes| {
            let named = scopes.iter().map(|scope| scope.as_str()).filter(|scope| is_scope(scope));
            named.take(MOST_SCOPES).map(str::to_owned).collect()
        }),
    })
}

/// RFC 6749, 3.3.
pub(super) fn is_scope(scope: &str) -> bool {
    let letter = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    (1..=MAX_SCOPE_BYTES).contains(&scope.len()) && scope.bytes().all(letter)
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// GitHub's names for it, besides the standard one.
fn is_invalid_grant(error: &str) -> bool {
    matches!(error, "invalid_grant" | "bad_refresh_token" | "bad_verification_code")
}

/// A code of the provider's, as far as it is one: it goes into messages and logs.
pub(super) fn code(text: &str) -> String {
    let clean: String = text.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')).collect();
    clean.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::Value;

    fn read(more: &Value) -> Tokens {
        let mut answer = json!({"access_token": "a", "token_type": "Bearer"});
        answer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        tokens(Ok(serde_json::from_value(answer).unwrap())).unwrap()
    }

    #[test]
    fn no_token_is_good_for_longer_than_there_is_time_for() {
        assert_eq!(read(&json!({"expires_in": 3600})).expires_in, Some(Duration::from_secs(3600)));
        for long in [u64::MAX, 1 << 63, 1 << 40] {
            assert_eq!(read(&json!({ "expires_in": long })).expires_in, Some(LONGEST_LIFE), "{long}");
        }
        assert_eq!(read(&json!({})).expires_in, None);
    }

    #[test]
    fn scopes_are_those_that_can_be_and_not_for_ever() {
        let scopes = |text: &str| read(&json!({ "scope": text })).scopes.unwrap();
        assert_eq!(scopes("openid mcp:read nul\0 q\"uote esc\u{1b} größe"), ["openid", "mcp:read"]);
        assert_eq!(scopes(&"a ".repeat(1000)).len(), MOST_SCOPES);
        assert_eq!(scopes(&"x".repeat(MAX_SCOPE_BYTES + 1)), Vec::<String>::new());
    }
}
