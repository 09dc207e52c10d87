//! Requests to providers, through `outbound` and with limits: what a provider answers is looked at up to a size and for
//! a time. No message has a query, a body or a header, where secrets are. May touch: the network through `outbound`.

use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::outbound::{Outbound, Ranges, Refused, read_limited};

/// Metadata and tokens are a few KiB.
const MAX_BYTES: usize = 256 * 1024;
const CONNECT: Duration = Duration::from_secs(5);
/// One request, with its answer.
const TOTAL: Duration = Duration::from_secs(8);

/// Why a provider gave no answer that can be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NetError {
    /// The address is not one that may be called.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Nobody answers there, or not to the end.
    #[error("{host} does not answer: {why}")]
    Unreachable {
        /// Whom we called.
        host: String,
        /// What happened.
        why: String,
    },
    /// It answers that it is in trouble, or that it is asked too often.
    #[error("{host} answers {status}")]
    Trouble {
        /// Whom we called.
        host: String,
        /// Its answer.
        status: StatusCode,
        /// When it may be asked again, if it says so.
        retry_after: Option<Duration>,
    },
    /// It answers something else than what was asked for.
    #[error("{url} is not what it should be: {why}")]
    Document {
        /// What we asked for, without its query.
        url: String,
        /// What is wrong.
        why: String,
    },
}

impl NetError {
    /// Whether the same may well work later.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Trouble { .. })
    }
}

/// The way to providers.
#[derive(Clone)]
pub struct Net {
    outbound: Outbound,
}

impl Net {
    /// Through this.
    pub fn new(outbound: Outbound) -> Self {
        Self { outbound }
    }

    /// Whether a URL may be called, or shown to a user to go to.
    pub fn check(&self, url: &str, open: &Ranges) -> Result<Url, NetError> {
        Ok(self.outbound.check(url, open)?)
    }

    /// Sends a request and reads the whole answer; 5xx and 429 are errors.
    pub async fn send(&self, open: &Ranges, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, NetError> {
        let (parts, body) = request.into_parts();
        let host = parts.uri.host().unwrap_or_default().to_owned();
        let unreachable = |why: String| NetError::Unreachable { host: host.clone(), why };
        let request = self.outbound.request(parts.method, &parts.uri.to_string(), open, CONNECT)?;
        let sent = request.headers(parts.headers).body(body).timeout(TOTAL).send().await;
        let answer = match sent {
            Ok(answer) => answer,
            Err(error) => {
                let refused = Refused::within(&error).cloned();
                return Err(refused.map_or_else(|| unreachable(why(error)), NetError::Refused));
            }
        };
        let (status, headers) = (answer.status(), answer.headers().clone());
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            return Err(NetError::Trouble { host, status, retry_after: seconds.map(Duration::from_secs) });
        }
        let body = read_limited(answer, MAX_BYTES).await.map_err(|error| unreachable(error.to_string()))?;
        let mut response = Response::new(body.into());
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        Ok(response)
    }

    /// A JSON document; none when the provider has no such thing.
    pub async fn document<T: DeserializeOwned>(&self, open: &Ranges, url: &Url) -> Result<Option<T>, NetError> {
        let request = Request::builder().uri(url.as_str()).header(ACCEPT, "application/json").body(Vec::new());
        let request = request.map_err(|error| document_error(url, error.to_string()))?;
        let response = self.send(open, request).await?;
        if !response.status().is_success() {
            return Ok(None);
        }
        serde_json::from_slice(response.body()).map(Some).map_err(|error| document_error(url, error.to_string()))
    }

    /// Sends a JSON document, and gives back status and body of the answer.
    pub async fn post(
        &self,
        open: &Ranges,
        url: &Url,
        document: &impl Serialize,
    ) -> Result<Response<Vec<u8>>, NetError> {
        let body = serde_json::to_vec(document).map_err(|error| document_error(url, error.to_string()))?;
        let request = Request::builder().method(Method::POST).uri(url.as_str());
        let request = request.header(ACCEPT, "application/json, text/event-stream");
        let request = request.header(CONTENT_TYPE, "application/json").body(body);
        self.send(open, request.map_err(|error| document_error(url, error.to_string()))?).await
    }
}

pub(super) fn document_error(url: &Url, why: impl Into<String>) -> NetError {
    let mut url = url.clone();
    url.set_query(None);
    NetError::Document { url: url.into(), why: why.into() }
}

/// The innermost reason: the others repeat that a request failed.
fn why(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "it takes too long".to_owned();
    }
    let error = error.without_url();
    let innermost = std::iter::successors(std::error::Error::source(&error), |inner| inner.source()).last();
    innermost.map_or_else(|| error.to_string(), ToString::to_string)
}
