//! Series of MCP connections, whose names are their admins' to choose: as many of an organization as were used last have
//! series, so that ever new names are no ever new series. May touch: memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::resilience::breaker::State;

/// More than an organization has connections by default; one that has more sees the series of some come and go.
const NAMES_PER_ORGANIZATION: usize = 100;

/// What is known of a name.
#[derive(Default)]
struct Name {
    /// When it was used last, by a clock that counts uses.
    used: u64,
    /// Outcomes that its calls have had.
    outcomes: Vec<String>,
}

#[derive(Default)]
struct Names {
    clock: u64,
    organizations: HashMap<String, HashMap<String, Name>>,
}

/// Calls and breakers by connection. Series are written under the lock: a name that goes at that moment would leave them
/// behind.
pub(super) struct Connections {
    calls: IntCounterVec,
    breakers: IntGaugeVec,
    names: Mutex<Names>,
}

impl Connections {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let calls = IntCounterVec::new(
            Opts::new(
                "agentapi_mcp_calls_total",
                "Requests to MCP servers by organization, connection and outcome: ok, or why not.",
            ),
            &["organization", "connection", "outcome"],
        )?;
        let breakers = IntGaugeVec::new(
            Opts::new("agentapi_mcp_breaker_state", "Circuit breakers: 0 closed, 1 half-open, 2 open."),
            &["organization", "connection"],
        )?;
        registry.register(Box::new(calls.clone()))?;
        registry.register(Box::new(breakers.clone()))?;
        Ok(Self { calls, breakers, names: Mutex::default() })
    }

    pub(super) fn call(&self, organization: &str, connection: &str, outcome: &str) {
        self.named(organization, connection, |name| {
            if !name.outcomes.iter().any(|known| known == outcome) {
                name.outcomes.push(outcome.to_owned());
            }
            self.calls.with_label_values(&[organization, connection, outcome]).inc();
        });
    }

    pub(super) fn breaker(&self, organization: &str, connection: &str, state: State) {
        let state = match state {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open => 2,
        };
        self.named(organization, connection, |_| {
            self.breakers.with_label_values(&[organization, connection]).set(state);
        });
    }

    fn named(&self, organization: &str, connection: &str, write: impl FnOnce(&mut Name)) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.clock += 1;
        let now = names.clock;
        let known = names.organizations.entry(organization.to_owned()).or_default();
        if known.len() >= NAMES_PER_ORGANIZATION && !known.contains_key(connection) {
            let oldest = known.iter().min_by_key(|(_, name)| name.used).map(|(name, _)| name.clone());
            if let Some((oldest, name)) = oldest.and_then(|oldest| known.remove_entry(&oldest)) {
                self.remove(organization, &oldest, &name);
            }
        }
        let name = known.entry(connection.to_owned()).or_default();
        name.used = now;
        write(name);
    }

    pub(super) fn keep_organizations(&self, lives: impl Fn(&str) -> bool) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        for (organization, known) in names.organizations.extract_if(|organization, _| !lives(organization)) {
            for (connection, name) in known {
                self.remove(&organization, &connection, &name);
            }
        }
    }

    fn remove(&self, organization: &str, connection: &str, name: &Name) {
        for outcome in &name.outcomes {
            let _ = self.calls.remove_label_values(&[organization, connection, outcome]);
        }
        // It may have had calls and no state yet.
        let _ = self.breakers.remove_label_values(&[organization, connection]);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lines(registry: &Registry, with: &str) -> usize {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        text.lines().filter(|line| !line.starts_with('#') && line.contains(with)).count()
    }

    #[test]
    fn ever_new_names_are_no_ever_new_series() {
        let registry = Registry::new();
        let connections = Connections::new(&registry).unwrap();
        connections.call("globex", "docs", "ok");
        for number in 0..10 * NAMES_PER_ORGANIZATION {
            let name = format!("n{number}");
            connections.call("acme", &name, "ok");
            connections.breaker("acme", &name, State::Open);
            // In use all the time, it stays.
            connections.call("acme", "github", "ok");
            connections.call("acme", "github", "timed-out");
        }
        assert_eq!(lines(&registry, "agentapi_mcp_breaker_state"), NAMES_PER_ORGANIZATION - 1);
        assert_eq!(lines(&registry, r#"organization="acme",outcome="ok""#), NAMES_PER_ORGANIZATION);
        assert_eq!(lines(&registry, r#"connection="n999""#), 2);
        assert_eq!(lines(&registry, r#"connection="github",organization="acme",outcome="ok"} 1000"#), 1);
        assert_eq!(lines(&registry, r#"connection="github",organization="acme",outcome="timed-out"} 1000"#), 1);
        assert_eq!(lines(&registry, r#"organization="globex""#), 1, "another organization's stay");

        connections.keep_organizations(|name| name == "globex");
        assert_eq!((lines(&registry, "acme"), lines(&registry, "globex")), (0, 1));
        connections.call("acme", "github", "ok");
        assert_eq!(lines(&registry, "acme"), 1);
    }
}
