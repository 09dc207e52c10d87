//! What we say about an `McpConnection`. Pure.
use crate::{
    controllers::reference::Refusal,
    observations::{Observation, Tool},
    status::{Saying, merge, without_unsaid},
};
use agentapi_crds::{
    McpConnection,
    conditions::{ACCEPTED, AUTHORIZED, BREAKER_CLOSED, EGRESS_ALLOWED, READY, TOOLS_PINNED, reason},
    mcp_connection::{McpConnectionStatus, ToolStatus},
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use std::time::Duration;

/// A status does not hold more tools than this.
const MOST_TOOLS: usize = 256;
/// Conditions that are there only while there is something to say.
const OURS: [&str; 4] = [AUTHORIZED, BREAKER_CLOSED, TOOLS_PINNED, EGRESS_ALLOWED];
/// So many names are in a message.
const NAMED: usize = 5;

/// How far a connection has come.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// It is not allowed, or it makes no sense.
    Refused(Refusal),
    /// It waits for something: the reason, and what people read.
    Waiting(&'static str, String),
    /// The gateway knows it.
    InPlace(Box<Seen>),
}

/// What is known of a connection that is in place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// What the runtime observed last.
    pub observation: Option<Observation>,
    /// After this time an observation says nothing any more.
    pub stale_after: Duration,
    /// Why the pod of a stdio connection is not ready.
    pub server: Option<String>,
    /// Egress rules of a stdio connection that are not in force, and why. `None`: it is none.
    pub egress: Option<Vec<String>>,
}

/// The new status.
pub fn status(connection: &McpConnection, state: &State, now: Timestamp) -> McpConnectionStatus {
    let old = connection.status.clone().unwrap_or_default();
    let generation = connection.metadata.generation;
    let accepted = || Saying::yes(ACCEPTED, reason::ACCEPTED, "the Organization admits this connection");
    let (sayings, id) = match state {
        State::Refused(refusal) => {
            let no = |kind| Saying::no(kind, refusal.reason, refusal.message.clone());
            (vec![no(ACCEPTED), no(READY)], None)
        }
        State::Waiting(why, message) => {
            (vec![accepted(), Saying::no(READY, why, message.clone())], old.connection_id.clone())
        }
        State::InPlace(seen) => {
            let mut sayings = vec![accepted(), ready(connection, seen)];
            sayings.extend([
                authorized(connection, seen),
                breaker_closed(connection, seen),
                tools_pinned(connection, seen),
            ]);
            sayings.extend(seen.egress.as_deref().map(egress_allowed));
            (sayings, connection.metadata.uid.clone())
        }
    };
    let observation = match state {
        State::InPlace(seen) => seen.observation.as_ref(),
        _ => None,
    };
    let mut new = McpConnectionStatus {
        observed_generation: generation,
        connection_id: id,
        protocol_version: observation.and_then(|it| it.protocol.clone()),
        tool_count: observation
            .filter(|it| tools_are_known(connection, it))
            .map(|it| i32::try_from(it.tools.len()).unwrap_or(i32::MAX)),
        tools: observation.map(|it| it.tools.iter().take(MOST_TOOLS).map(shown).collect()).unwrap_or_default(),
        last_probe: old.last_probe.clone(),
        conditions: merge(&without_unsaid(&old.conditions, &OURS, &sayings), &sayings, generation, now),
    };
    // That it was looked at again and nothing was new is no reason to write.
    let probed = observation.map(|it| Time(it.observed_at));
    if new != old || probed.is_none() {
        new.last_probe = probed;
    }
    new
}

fn shown(tool: &Tool) -> ToolStatus {
    ToolStatus { name: tool.name.clone(), digest: tool.digest.clone() }
}

/// The observation, if it speaks of this spec and is not too old.
fn current<'a>(connection: &McpConnection, seen: &'a Seen) -> Option<&'a Observation> {
    let of_this_spec = |it: &&Observation| Some(it.generation) == connection.metadata.generation;
    seen.observation.as_ref().filter(of_this_spec).filter(|it| it.age < seen.stale_after)
}

fn not_known(connection: &McpConnection, seen: &Seen) -> (&'static str, &'static str) {
    let same_spec = seen.observation.as_ref().map(|it| it.generation) == connection.metadata.generation;
    if seen.observation.is_some() && same_spec {
        let message =
            "the runtime has not looked at the server for a long time; see the pods and logs of agentapi-runtime";
        (reason::PROBE_OVERDUE, message)
    } else {
        (reason::PROGRESSING, "waits for the runtime to look at the server")
    }
}

fn ready(connection: &McpConnection, seen: &Seen) -> Saying {
    if let Some(trouble) = &seen.server {
        return Saying::no(READY, reason::SERVER_NOT_READY, trouble.clone());
    }
    if let Some(refused) = seen.egress.as_ref().filter(|refused| !refused.is_empty()) {
        return Saying::no(READY, reason::EGRESS_NOT_ALLOWED, refused.join("; "));
    }
    let Some(observation) = current(connection, seen) else {
        let (why, message) = not_known(connection, seen);
        return Saying::unknown(READY, why, message);
    };
    if observation.quarantined {
        return Saying::no(READY, reason::TOOLS_CHANGED, quarantine(observation));
    }
    if observation.state == "Ready" {
        let message = if tools_are_known(connection, observation) {
            format!("the server answers and has {} tools", observation.tools.len())
        } else {
            "users have consented; the server's tools are known as soon as one of them uses it".to_owned()
        };
        return Saying::yes(READY, reason::RECONCILED, message);
    }
    let why = wrong(observation);
    Saying::no(READY, why, observation.message.clone().unwrap_or_else(|| advice(why).to_owned()))
}

/// The runtime itself has the consent of no user, so it may not have seen the tools.
fn tools_are_known(connection: &McpConnection, observation: &Observation) -> bool {
    connection.spec.auth.oauth.is_none() || !observation.tools.is_empty()
}

/// The runtime's words for what is wrong are more than a resource needs.
fn wrong(observation: &Observation) -> &'static str {
    match (observation.state.as_str(), observation.authorization.as_deref()) {
        ("NeedsConsent", _) | ("NoCredentials" | "Unauthorized", Some("NeedsConsent")) => reason::NEEDS_CONSENT,
        ("ConsentRevoked", _) | ("NoCredentials" | "Unauthorized", Some("Revoked")) => reason::REVOKED,
        ("NoCredentials" | "Unauthorized", _) => reason::NEEDS_CREDENTIALS,
        ("AddressRefused", _) => reason::ADDRESS_REFUSED,
        ("ProtocolError", _) => reason::PROTOCOL_ERROR,
        ("BreakerOpen", _) => reason::BREAKER_OPEN,
        ("Unusable", _) => reason::INVALID,
        _ => reason::UNREACHABLE,
    }
}

/// What to do, where the runtime does not say it.
fn advice(why: &str) -> &'static str {
    match why {
        reason::NEEDS_CONSENT => {
            "no user has consented yet; a user opens the URL that POST /v1/oauth/init gives for this connection"
        }
        reason::REVOKED => "the consent was taken back; a user consents again through POST /v1/oauth/init",
        reason::NEEDS_CREDENTIALS => {
            "the server refuses our credentials; look at the Secret that spec.auth names in the tenant namespace"
        }
        reason::ADDRESS_REFUSED => {
            "the server's address is private; the platform team can open it in spec.mcp.allowPrivateRanges of the Organization"
        }
        reason::PROTOCOL_ERROR => "what answers at the server's URL speaks no MCP; check spec.transport",
        _ => "the server can't be reached; check spec.transport and whether the server runs",
    }
}

fn authorized(connection: &McpConnection, seen: &Seen) -> Saying {
    let auth = &connection.spec.auth;
    if auth.bearer.is_none() && auth.api_key.is_none() && auth.oauth.is_none() {
        return Saying::yes(AUTHORIZED, reason::NO_AUTHENTICATION, "spec.auth asks for no authentication");
    }
    let Some(observation) = current(connection, seen) else {
        let (why, message) = not_known(connection, seen);
        return Saying::unknown(AUTHORIZED, why, message);
    };
    let said = |why| observation.message.clone().unwrap_or_else(|| advice(why).to_owned());
    match (observation.authorization.as_deref(), observation.state.as_str()) {
        (Some("NeedsConsent"), _) => Saying::no(AUTHORIZED, reason::NEEDS_CONSENT, advice(reason::NEEDS_CONSENT)),
        (Some("Revoked"), _) => Saying::no(AUTHORIZED, reason::REVOKED, advice(reason::REVOKED)),
        (Some("Expiring"), _) => {
            let message =
                "the consent ends soon and can't be renewed; a user consents again through POST /v1/oauth/init";
            Saying::yes(AUTHORIZED, reason::EXPIRING, message)
        }
        (_, "NoCredentials" | "Unauthorized") => {
            Saying::no(AUTHORIZED, reason::NEEDS_CREDENTIALS, said(reason::NEEDS_CREDENTIALS))
        }
        // Whether a fixed credential is any good, only the server can tell.
        (None, state) if state != "Ready" && !observation.quarantined => {
            Saying::unknown(AUTHORIZED, wrong(observation), "the server did not say; see the condition Ready")
        }
        _ => Saying::yes(AUTHORIZED, reason::AUTHORIZED, "the server lets the runtime in"),
    }
}

fn breaker_closed(connection: &McpConnection, seen: &Seen) -> Saying {
    let Some(observation) = current(connection, seen) else {
        let (why, message) = not_known(connection, seen);
        return Saying::unknown(BREAKER_CLOSED, why, message);
    };
    match observation.breaker.as_str() {
        "open" => {
            let limits = &connection.spec.breaker;
            let message = format!(
                "the server failed {} times in a row: calls are refused and it is tried again {} s later; mend the server",
                limits.failures, limits.open_seconds
            );
            Saying::no(BREAKER_CLOSED, reason::BREAKER_OPEN, message)
        }
        "half-open" => {
            let message = "a few calls go through to see whether the server is well again";
            Saying::no(BREAKER_CLOSED, reason::BREAKER_HALF_OPEN, message)
        }
        _ => Saying::yes(BREAKER_CLOSED, reason::BREAKER_CLOSED, "calls go through"),
    }
}

fn tools_pinned(connection: &McpConnection, seen: &Seen) -> Saying {
    if !connection.spec.tools.pin {
        let message = "spec.tools.pin is false: a tool that changes is let through";
        return Saying::no(TOOLS_PINNED, reason::NOT_PINNED, message);
    }
    match current(connection, seen) {
        Some(observation) if observation.quarantined => {
            Saying::no(TOOLS_PINNED, reason::TOOLS_CHANGED, quarantine(observation))
        }
        Some(Observation { pinned: Some(pinned), .. }) => {
            let message = format!("{} tools are pinned and as they were", pinned.len());
            Saying::yes(TOOLS_PINNED, reason::TOOLS_PINNED, message)
        }
        Some(_) => Saying::unknown(TOOLS_PINNED, reason::PROGRESSING, "waits for the server's tools to pin them"),
        None => {
            let (why, message) = not_known(connection, seen);
            Saying::unknown(TOOLS_PINNED, why, message)
        }
    }
}

/// Which tools differ, and how to let them in.
fn quarantine(observation: &Observation) -> String {
    let pinned = observation.pinned.as_deref().unwrap_or_default();
    let (mut changed, mut added) = (Vec::new(), Vec::new());
    for tool in &observation.tools {
        match pinned.iter().find(|known| known.name == tool.name) {
            None => added.push(tool.name.as_str()),
            Some(known) if known.digest != tool.digest => changed.push(tool.name.as_str()),
            Some(_) => {}
        }
    }
    let there = |name: &str| observation.tools.iter().any(|tool| tool.name == name);
    let gone: Vec<&str> = pinned.iter().map(|tool| tool.name.as_str()).filter(|name| !there(name)).collect();
    let parts: Vec<String> = [("changed", changed), ("new", added), ("gone", gone)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(word, names)| {
            let more = names.len().saturating_sub(NAMED);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            format!("{word}: {}{more}", names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", "))
        })
        .collect();
    format!(
        "tools differ from those that were pinned ({}), so calls are refused; review them, then set spec.tools.pin to false \
         and back to true",
        if parts.is_empty() { "the server's list is another".to_owned() } else { parts.join("; ") }
    )
}

fn egress_allowed(refused: &[String]) -> Saying {
    if refused.is_empty() {
        return Saying::yes(EGRESS_ALLOWED, reason::ACCEPTED, "every rule of spec.transport.stdio.egress is in force");
    }
    Saying::no(EGRESS_ALLOWED, reason::EGRESS_NOT_ALLOWED, refused.join("; "))
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
