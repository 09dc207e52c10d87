//! A user agent without a screen: cookies, redirects and forms, as far as the provider's pages need them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use reqwest::header::{ACCEPT, CONTENT_TYPE, COOKIE, LOCATION, ORIGIN, SET_COOKIE};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use url::{Url, form_urlencoded};

use crate::api::Answer;

/// What the user does at the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Log in and agree.
    Allow,
    /// Say no.
    Deny,
}

/// One browser of one person.
pub struct Agent {
    http: reqwest::Client,
    /// By host and port.
    cookies: BTreeMap<String, BTreeMap<String, String>>,
}

impl Agent {
    /// A new profile.
    pub fn new() -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { http, cookies: BTreeMap::new() })
    }

    /// The same behind a proxy, which knows the names of a cluster.
    pub fn through(proxy: &str) -> Result<Self> {
        let http = reqwest::Client::builder().proxy(reqwest::Proxy::http(proxy)?);
        Ok(Self { http: http.redirect(reqwest::redirect::Policy::none()).build()?, cookies: BTreeMap::new() })
    }

    /// Sends a request with the cookies of its host, and keeps those that come.
    async fn send(
        &mut self,
        method: Method,
        url: &Url,
        change: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response> {
        let jar = self.cookies.entry(url.authority().to_owned()).or_default();
        let mut request = self.http.request(method, url.clone());
        if !jar.is_empty() {
            let all: Vec<String> = jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
            request = request.header(COOKIE, all.join("; "));
        }
        let response = change(request).send().await?;
        for cookie in response.headers().get_all(SET_COOKIE) {
            let (name, rest) = cookie.to_str()?.split_once('=').context("no cookie")?;
            let value = rest.split(';').next().unwrap_or_default();
            if value.is_empty() {
                jar.remove(name);
            } else {
                jar.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(response)
    }

    /// Puts a cookie in, as an attacker would who could.
    pub fn set_cookie(&mut self, site: &Url, (name, value): (String, String)) {
        self.cookies.entry(site.authority().to_owned()).or_default().insert(name, value);
    }

    /// Opens the page of a consent and presses its button; gives back where the provider is.
    pub async fn leave(&mut self, page: &str) -> Result<Url> {
        let page: Url = page.parse()?;
        let shown = self.send(Method::GET, &page, |request| request.header(ACCEPT, "text/html")).await?;
        anyhow::ensure!(shown.status() == 200, "the page: {}", shown.status());
        let state = page.query_pairs().find(|(name, _)| name == "state").context("no state")?.1.into_owned();
        let (mut post, origin) = (page.clone(), page.origin().ascii_serialization());
        post.set_query(None);
        let body = json!({ "state": state });
        let answer = self.send(Method::POST, &post, |request| request.header(ORIGIN, origin).json(&body)).await?;
        anyhow::ensure!(answer.status() == 200, "the button: {} {}", answer.status(), answer.text().await?);
        let body: Value = answer.json().await?;
        Ok(body["authorizationUrl"].as_str().context("no address")?.parse()?)
    }

    /// Does what the provider asks for, until it sends the user back; gives back where to.
    pub async fn decide(&mut self, at: &Url, login: &str, decision: Decision, callback: &str) -> Result<Url> {
        let mut response = self.send(Method::GET, at, |request| request).await?;
        let mut at = at.clone();
        for _ in 0..20 {
            if let Some(location) = response.headers().get(LOCATION) {
                let next = at.join(location.to_str()?)?;
                if next.as_str().starts_with(callback) {
                    return Ok(next);
                }
                at = next;
                response = self.send(Method::GET, &at, |request| request).await?;
                continue;
            }
            let (status, page) = (response.status(), response.text().await?);
            let form: Vec<(&str, &str)> = if page.contains(r#"name="prompt" value="login""#) {
                vec![("prompt", "login"), ("login", login), ("password", "x")]
            } else if page.contains(r#"name="prompt" value="consent""#) {
                vec![("prompt", "consent")]
            } else {
                bail!("neither a login nor a consent at {at}: {status} {page}");
            };
            if decision == Decision::Deny {
                at.set_path(&format!("{}/abort", at.path()));
                response = self.send(Method::GET, &at, |request| request).await?;
            } else {
                let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(&form).finish();
                let kind = "application/x-www-form-urlencoded";
                response =
                    self.send(Method::POST, &at, |request| request.header(CONTENT_TYPE, kind).body(body)).await?;
            }
        }
        bail!("the provider does not come to an end: {at}")
    }

    /// Follows the provider back.
    pub async fn back(&mut self, callback: &Url) -> Result<Answer> {
        let response = self.send(Method::GET, callback, |request| request).await?;
        let status = response.status();
        let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let content_type = kind.split(';').next().unwrap_or_default().to_owned();
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, content_type, body })
    }
}
