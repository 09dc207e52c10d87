//! Where a request comes from, for the audit log. May touch: request headers, the configuration of trusted proxies.

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::extract::FromRequestParts;
use http::header::USER_AGENT;
use http::request::Parts;

use super::{App, request_id};
use crate::audit::Client;

const FORWARDED_FOR: &str = "x-forwarded-for";
/// Enough to tell clients apart.
const MAX_AGENT_CHARS: usize = 512;

impl FromRequestParts<App> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        let forwarded = parts.headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        // Collected: header maps go one way only.
        let forwarded: Vec<&str> = forwarded.collect();
        let source = parts.extensions.get::<SocketAddr>();
        let agent = parts.headers.get(USER_AGENT).and_then(|value| value.to_str().ok());
        Ok(Self {
            request_id: request_id::current(),
            source_ip: source.map(|peer| app.proxies.client(peer.ip(), forwarded.into_iter()).to_string()),
            user_agent: agent.map(|text| text.chars().take(MAX_AGENT_CHARS).collect()),
        })
    }
}
