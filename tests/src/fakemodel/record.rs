//! The last requests, for assertions. Holds what was asked and answered; never a header or a key.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use axum::http::Method;
use serde::{Deserialize, Serialize};

use super::script::{Conversation, Reply};

/// So much of a system prompt is kept.
const SYSTEM_BYTES: usize = 8 * 1024;

/// What is kept of one request.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Recorded {
    /// When it came in (RFC 3339).
    pub time: String,
    /// The path; for one the endpoint does not know, with the method in front.
    pub path: String,
    /// Which header carried the API key; empty for unknown paths.
    pub auth: String,
    /// The model asked for.
    pub model: String,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// How many turns (user, assistant, tool call, tool result) the request carried.
    pub entries: usize,
    /// The names of the tools on offer.
    pub tools: Vec<String>,
    /// The end of what the model was told before the first turn: what agents put there themselves comes first and is long.
    #[serde(default)]
    pub system: String,
    /// The last text of the user.
    pub user: String,
    /// The answer: a text, or `NAME {input}` of a tool call.
    pub reply: String,
}

/// What the endpoint at this base URL has been asked, oldest first.
///
/// # Errors
/// When it does not answer.
pub async fn recorded(base: &str) -> anyhow::Result<Vec<Recorded>> {
    Ok(reqwest::Client::builder().no_proxy().build()?.get(format!("{base}/requests")).send().await?.json().await?)
}

impl Recorded {
    pub(super) fn new(path: &str, auth: &str, conversation: &Conversation, reply: &Reply) -> Self {
        Self {
            time: jiff::Timestamp::now().to_string(),
            path: path.to_owned(),
            auth: auth.to_owned(),
            model: conversation.model.clone(),
            stream: conversation.stream,
            entries: conversation.entries.len(),
            tools: conversation.tools.iter().map(|tool| tool.name.clone()).collect(),
            system: ending(&conversation.system),
            user: conversation.last_user().unwrap_or_default().to_owned(),
            reply: match reply {
                Reply::Text { text, .. } => text.clone(),
                Reply::Tool { name, input, .. } => format!("{name} {input}"),
                Reply::Fail { status, message } => format!("{status} {message}"),
            },
        }
    }

    pub(super) fn unknown(method: &Method, path: &str) -> Self {
        Self {
            time: jiff::Timestamp::now().to_string(),
            path: format!("{method} {path}"),
            auth: String::new(),
            model: String::new(),
            stream: false,
            entries: 0,
            tools: Vec::new(),
            system: String::new(),
            user: String::new(),
            reply: "404".to_owned(),
        }
    }
}

/// Its last bytes.
fn ending(text: &str) -> String {
    text[text.ceil_char_boundary(text.len().saturating_sub(SYSTEM_BYTES))..].to_owned()
}

/// A bounded list; the oldest request goes first.
#[derive(Debug)]
pub(super) struct Recorder {
    keep: usize,
    list: Mutex<VecDeque<Recorded>>,
}

impl Recorder {
    pub(super) fn new(keep: usize) -> Self {
        Self { keep, list: Mutex::new(VecDeque::new()) }
    }

    pub(super) fn push(&self, recorded: Recorded) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push_back(recorded);
        while list.len() > self.keep {
            list.pop_front();
        }
    }

    /// The last `count` requests, oldest first.
    pub(super) fn last(&self, count: usize) -> Vec<Recorded> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().skip(list.len().saturating_sub(count)).cloned().collect()
    }

    pub(super) fn clear(&self) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
