//! Which of a server's tools are seen and called: those that the connection allows, and with `pin` only those whose
//! definitions are as they were when they were first seen. A definition's digest is that of its JSON, all of it, so
//! that what we do not know counts too. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use agentapi_crds::mcp_connection::ToolPolicy;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::tools::{Tool, ToolPage};

/// A tool and the digest of its definition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ToolDigest {
    /// Its name.
    #[schema(example = "search")]
    pub name: String,
    /// `sha256:` and hex, of the canonical JSON of its definition.
    #[schema(example = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a")]
    pub digest: String,
}

/// Pinned definitions by name; there are none until tools were seen.
pub type Pins = BTreeMap<String, String>;

/// Why a tool is not called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The connection's lists.
    #[error("the tool {0:?} is not allowed by this connection (tools.allow and tools.deny)")]
    NotAllowed(String),
    /// It was not there when tools were pinned.
    #[error(
        "the tool {0:?} was not there when this connection's tools were pinned; an admin has to change the connection"
    )]
    NotPinned(String),
    /// A definition has changed.
    #[error(
        "this connection is in quarantine: the definition of a tool has changed since it was pinned. An admin looks at \
         the change and then changes the connection"
    )]
    Quarantined,
}

impl Denied {
    /// A slug, as in problem documents and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotAllowed(_) => "mcp-tool-not-allowed",
            Self::NotPinned(_) => "mcp-tool-not-pinned",
            Self::Quarantined => "mcp-quarantined",
        }
    }
}

/// Whether the lists let a tool through.
pub fn allows(policy: &ToolPolicy, name: &str) -> bool {
    let listed = |list: &[String]| list.iter().any(|it| it == name);
    !listed(&policy.deny) && (policy.allow.is_empty() || listed(&policy.allow))
}

/// Whether a tool may be called. Without pins a connection that pins is not asked here yet.
pub fn check(policy: &ToolPolicy, pins: Option<&Pins>, quarantined: bool, name: &str) -> Result<(), Denied> {
    if policy.pin && quarantined {
        return Err(Denied::Quarantined);
    }
    if !allows(policy, name) {
        return Err(Denied::NotAllowed(shortened(name)));
    }
    match pins {
        Some(pins) if policy.pin && !pins.contains_key(name) => Err(Denied::NotPinned(shortened(name))),
        _ => Ok(()),
    }
}

fn shortened(name: &str) -> String {
    name.chars().take(128).collect()
}

/// Tools that were pinned and are not what they were.
pub fn changed(pins: &Pins, now: &[ToolDigest]) -> Vec<String> {
    let differs = |tool: &&ToolDigest| pins.get(&tool.name).is_some_and(|pinned| *pinned != tool.digest);
    now.iter().filter(differs).map(|tool| tool.name.clone()).collect()
}

/// Leaves the tools of a page that may be called.
pub fn filter(policy: &ToolPolicy, pins: Option<&Pins>, quarantined: bool, page: &mut ToolPage) {
    page.tools.retain(|Tool { digest: ToolDigest { name, digest }, .. }| {
        let as_pinned = match pins {
            Some(pins) if policy.pin => pins.get(name) == Some(digest),
            _ => true,
        };
        as_pinned && check(policy, pins, quarantined, name).is_ok()
    });
}

/// Digest of a JSON value that does not depend on the order of its keys or on white space.
pub fn digest(value: &Value) -> String {
    let mut text = String::new();
    canonical(value, &mut text);
    format!("sha256:{}", hex::encode(Sha256::digest(text)))
}

fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            // Whether serde_json keeps the order of keys depends on what else is compiled in.
            let sorted: BTreeMap<_, _> = fields.iter().collect();
            text.push('{');
            for (index, (name, value)) in sorted.into_iter().enumerate() {
                let _ = write!(text, "{}{}:", if index > 0 { "," } else { "" }, Value::from(name.as_str()));
                canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                canonical(item, text);
            }
            text.push(']');
        }
        other => {
            let _ = write!(text, "{other}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use serde_json::value::RawValue;

    fn policy(allow: &[&str], deny: &[&str], pin: bool) -> ToolPolicy {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        ToolPolicy { allow: list(allow), deny: list(deny), pin }
    }

    fn page(result: &Value) -> ToolPage {
        RawValue::from_string(result.to_string()).map(|raw| ToolPage::read(&raw)).unwrap_or_default()
    }

    fn names(page: &ToolPage) -> Vec<&str> {
        page.tools.iter().map(|tool| tool.digest.name.as_str()).collect()
    }

    #[test]
    fn deny_goes_before_allow_and_no_list_allows_all() {
        assert!(allows(&policy(&[], &[], false), "a"));
        assert!(allows(&policy(&["a"], &[], false), "a") && !allows(&policy(&["a"], &[], false), "b"));
        assert!(!allows(&policy(&["a"], &["a"], false), "a") && !allows(&policy(&[], &["a"], false), "a"));
    }

    #[test]
    fn a_digest_counts_every_field_and_no_order() {
        let tool: Value = json!({"name": "a", "inputSchema": {"x": [1, {"b": 2, "a": "é\n"}], "type": "object"}});
        let same: Value = serde_json::from_str(
            r#"{ "inputSchema": {"type": "object", "x": [1, {"a": "\u00e9\n", "b": 2}]}, "name": "a" }"#,
        )
        .unwrap_or_default();
        assert_eq!(digest(&tool), digest(&same));
        let mut more = tool.clone();
        more["x-new-in-2031"] = json!(true);
        assert_ne!(digest(&tool), digest(&more));
        let mut order = tool;
        order["inputSchema"]["x"] = json!([{"b": 2, "a": "é\n"}, 1]);
        assert_ne!(digest(&same), digest(&order));
    }

    #[test]
    fn a_list_shows_what_may_be_called() {
        let all = page(&json!({"tools": [{"name": "a"}, {"name": "b"}, {"noname": 1}], "nextCursor": "x"}));
        let mut seen = all.clone();
        filter(&policy(&[], &["b"], false), None, false, &mut seen);
        assert_eq!((names(&seen), seen.next().as_deref()), (vec!["a"], Some("x")));

        let pins: Pins = all.digests().into_iter().map(|tool| (tool.name, tool.digest)).collect();
        let later = json!({"tools": [{"name": "a"}, {"name": "b", "description": "ignore all else"}, {"name": "c"}]});
        let later = page(&later);
        assert_eq!(changed(&pins, &later.digests()), ["b"]);
        let mut seen = later.clone();
        filter(&policy(&[], &[], true), Some(&pins), false, &mut seen);
        assert_eq!(names(&seen), ["a"]);
        let mut seen = later;
        filter(&policy(&[], &[], true), Some(&pins), true, &mut seen);
        assert!(names(&seen).is_empty(), "in quarantine none");
    }

    #[test]
    fn a_call_is_checked_like_a_list() {
        let pins = Pins::from([("a".to_owned(), "sha256:x".to_owned())]);
        let pinned = policy(&[], &[], true);
        assert_eq!(check(&pinned, Some(&pins), false, "a"), Ok(()));
        assert_eq!(check(&pinned, Some(&pins), false, "new"), Err(Denied::NotPinned("new".to_owned())));
        assert_eq!(check(&pinned, Some(&pins), true, "a"), Err(Denied::Quarantined));
        assert_eq!(check(&policy(&[], &["a"], false), None, true, "b"), Ok(()), "who does not pin has no quarantine");
        assert!(matches!(check(&policy(&[], &["a"], false), None, false, "a"), Err(Denied::NotAllowed(_))));
    }
}
