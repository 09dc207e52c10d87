//! Finds prompt injection in text from outside, in one pass: Unicode tricks are undone while the text is read, an
//! Aho-Corasick automaton finds the words that every rule needs, and the rules of a family look only at what is around
//! its words. Linear in the length of the text, whatever it holds. Pure.
//!
//! It finds what is known and clumsy. It is one fence of several, not the one that a secret may hang on.

mod fold;
mod matcher;
mod rules;

use serde::Serialize;

/// More findings in one text tell nobody more.
pub const MAX_FINDINGS: usize = 32;
/// What stands in the place of text that was cut out.
pub const REDACTED: &str = "[redacted]";
/// Rounds of cutting out before the whole text goes: what is left of two attacks may be a third.
const ROUNDS: usize = 4;

/// A text without control characters, which would hide a word from us and not from whoever reads it: they are typed
/// nowhere.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t' | '\r') || !c.is_control()).collect()
}

/// A kind of attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// "Ignore the previous instructions."
    IgnoreInstructions,
    /// "You are now …"
    RoleChange,
    /// Words that claim to be the system's or an administrator's, and questions for the system prompt.
    SystemClaim,
    /// Jailbreak, bypass, escape.
    Jailbreak,
    /// Run this, without asking.
    Execution,
    /// Script, and `javascript:` and `data:` URLs that run.
    ActiveContent,
    /// Send the secrets there.
    Exfiltration,
    /// Values of passwords and keys.
    Credentials,
    /// A new role, new instructions, an override.
    Override,
    /// A marker that says that the prompt has ended.
    EndOfPrompt,
    /// Hidden, reversed or disguised characters.
    Unicode,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::IgnoreInstructions,
        Self::RoleChange,
        Self::SystemClaim,
        Self::Jailbreak,
        Self::Execution,
        Self::ActiveContent,
        Self::Exfiltration,
        Self::Credentials,
        Self::Override,
        Self::EndOfPrompt,
        Self::Unicode,
    ];

    /// Its name in answers, the audit log and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IgnoreInstructions => "ignore-instructions",
            Self::RoleChange => "role-change",
            Self::SystemClaim => "system-claim",
            Self::Jailbreak => "jailbreak",
            Self::Execution => "execution",
            Self::ActiveContent => "active-content",
            Self::Exfiltration => "exfiltration",
            Self::Credentials => "credentials",
            Self::Override => "override",
            Self::EndOfPrompt => "end-of-prompt",
            Self::Unicode => "unicode",
        }
    }
}

/// A place in a text that looks like an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// First byte.
    pub start: usize,
    /// Behind the last byte.
    pub end: usize,
    /// Which kind.
    pub family: Family,
}

impl Finding {
    /// The same in characters, which clients in any language can count.
    pub fn characters(&self, text: &str) -> (usize, usize) {
        let start = text[..self.start].chars().count();
        (start, start + text[self.start..self.end].chars().count())
    }
}

/// Looks through a text. Findings are in the order of the text, at most [`MAX_FINDINGS`].
pub fn screen(text: &str) -> Vec<Finding> {
    let folded = fold::fold(text);
    let mut findings = folded.tricks.clone();
    matcher::find(&folded.text, |family, start, end| {
        let (start, end) = folded.original(start, end);
        findings.push(Finding { start, end, family });
    });
    findings.sort_unstable();
    findings.dedup_by(|next, kept| {
        let same = next.family == kept.family && next.start < kept.end;
        if same {
            kept.end = kept.end.max(next.end);
        }
        same
    });
    findings.truncate(MAX_FINDINGS);
    findings
}

/// The text without what was found. What is left has no findings.
pub fn redact(text: &str, findings: &[Finding]) -> String {
    let mut left = cut(text, findings);
    for _ in 1..ROUNDS {
        let more = screen(&left);
        if more.is_empty() {
            return left;
        }
        left = cut(&left, &more);
    }
    if screen(&left).is_empty() { left } else { REDACTED.to_owned() }
}

fn cut(text: &str, findings: &[Finding]) -> String {
    let mut left = String::with_capacity(text.len());
    let mut at = 0;
    for finding in findings {
        if finding.start >= at {
            left.push_str(&text[at..finding.start]);
            left.push_str(REDACTED);
        }
        at = at.max(finding.end);
    }
    left.push_str(&text[at..]);
    left
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
