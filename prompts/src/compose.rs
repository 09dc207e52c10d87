//! From policies to the one text that a session gets: which policies are part of it, in which order, and where each
//! line comes from. Pure.
//!
//! A policy is the section of its name. A lower scope's policy of the same name takes its place, unless it is locked:
//! then the lower one is left out. Priority orders the sections of one scope and nothing else.

use std::collections::HashMap;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::facts::Facts;
use crate::policy::{Mode, Policy, Scope};
use crate::template;

/// Longest composed text, in bytes.
pub const MAX_BYTES: usize = 128 * 1024;

/// Fuel for all templates of a session together: what is composed again for each session must not take long, however
/// many policies there are. Enough for fifty of the longest that only say something, and four that compute all they may.
const MAX_FUEL: u64 = 100_000;

/// Why there is no text. A session without the operator's rules is not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComposeError {
    /// A template does not work out for this session.
    #[error("PromptPolicy {policy} (generation {generation}): {problem}")]
    Template {
        /// Namespace and name.
        policy: String,
        /// Generation of its spec.
        generation: i64,
        /// Line, column and what is wrong.
        problem: String,
    },
    /// All templates together.
    #[error(
        "the prompt policies take too long together, at PromptPolicy {policy} (generation {generation}); make their \
         templates simpler, or use fewer"
    )]
    TooSlow {
        /// Namespace and name of the one that was too much.
        policy: String,
        /// Generation of its spec.
        generation: i64,
    },
    /// All sections together.
    #[error("the prompt policies have {bytes} bytes together, and {MAX_BYTES} are allowed; shorten one of them")]
    TooLong {
        /// Their length.
        bytes: usize,
    },
}

/// The policy behind a section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    /// `metadata.uid`.
    #[serde(skip)]
    pub id: u128,
    /// Its scope.
    pub scope: Scope,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Generation of its spec.
    pub generation: i64,
    /// Whether it is locked.
    pub locked: bool,
}

impl Source {
    fn of(policy: &Policy) -> Self {
        Self {
            id: policy.id,
            scope: policy.scope,
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            generation: policy.generation,
            locked: policy.locked,
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A part of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Where it comes from.
    pub source: Source,
    /// Its lines in the text, without the blank one that ends it.
    pub lines: usize,
}

/// A policy that is not part of the text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The policy.
    #[serde(flatten)]
    pub source: Source,
    /// Why, in words.
    pub reason: String,
}

/// What a session gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Composed {
    /// The system prompt; empty when there is no policy.
    pub text: String,
    /// `sha256:<hex>` of the text.
    pub digest: String,
    /// The strictest of the modes.
    pub mode: Mode,
    /// In the order of the text.
    pub sections: Vec<Section>,
    /// Policies that others took the place of.
    pub left_out: Vec<LeftOut>,
}

impl Composed {
    /// Every line of the text with where it comes from; a blank line between two sections belongs to the one before.
    pub fn lines(&self) -> impl Iterator<Item = (&str, &Source)> {
        let last = self.sections.len().saturating_sub(1);
        let sources = self.sections.iter().enumerate().flat_map(move |(index, section)| {
            std::iter::repeat_n(&section.source, section.lines + usize::from(index < last))
        });
        self.text.split('\n').zip(sources)
    }
}

/// The digest of a text.
pub fn digest(text: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(text)))
}

/// Composes the policies that apply to a session.
pub fn compose(policies: &[Policy], facts: &Facts) -> Result<Composed, ComposeError> {
    let (chosen, left_out) = choose(policies);
    let (mut composed, mut burnt) = (Composed { left_out, ..Composed::default() }, 0);
    for policy in chosen {
        composed.mode = composed.mode.max(policy.mode);
        let source = Source::of(policy);
        let (rendered, fuel) = template::rendered(&policy.template, &policy.variables, facts).map_err(|problem| {
            ComposeError::Template { policy: source.to_string(), generation: policy.generation, problem }
        })?;
        burnt += fuel;
        if burnt > MAX_FUEL {
            return Err(ComposeError::TooSlow { policy: source.to_string(), generation: policy.generation });
        }
        let text = rendered.trim_matches(['\n', '\r', ' ', '\t']);
        if text.is_empty() {
            composed.left_out.push(LeftOut { source, reason: "its text is empty for this session".to_owned() });
            continue;
        }
        if !composed.text.is_empty() {
            composed.text.push_str("\n\n");
        }
        composed.text.push_str(text);
        if composed.text.len() > MAX_BYTES {
            return Err(ComposeError::TooLong { bytes: composed.text.len() });
        }
        composed.sections.push(Section { source, lines: text.split('\n').count() });
    }
    composed.digest = digest(&composed.text);
    Ok(composed)
}

/// The policies that are used, in order, and the others.
fn choose(policies: &[Policy]) -> (Vec<&Policy>, Vec<LeftOut>) {
    let mut ordered: Vec<&Policy> = policies.iter().collect();
    ordered.sort_by(|a, b| {
        let place = |policy: &Policy| (policy.scope, std::cmp::Reverse(policy.priority));
        place(a).cmp(&place(b)).then_with(|| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)))
    });
    // Who has the section of a name: the highest that is locked, else the lowest.
    let mut owner: HashMap<&str, &Policy> = HashMap::new();
    for policy in &ordered {
        owner
            .entry(&policy.name)
            .and_modify(|best| {
                // Of one scope, a locked one speaks for all: the section is locked if one of them is.
                let same = best.scope == policy.scope;
                if (same && policy.locked) || (!same && !best.locked) {
                    *best = policy;
                }
            })
            .or_insert(policy);
    }
    let mut left_out = Vec::new();
    ordered.retain(|policy| {
        let Some(best) = owner.get(policy.name.as_str()).filter(|best| best.scope != policy.scope) else { return true };
        let (of, by) = (best.scope.as_str(), Source::of(best));
        let reason = if best.scope < policy.scope {
            format!("shadowed: the locked {of} policy {by} has this name")
        } else {
            format!("overridden by the {of} policy {by}, generation {}", best.generation)
        };
        left_out.push(LeftOut { source: Source::of(policy), reason });
        false
    });
    (ordered, left_out)
}

#[cfg(test)]
#[path = "compose_tests.rs"]
mod tests;
