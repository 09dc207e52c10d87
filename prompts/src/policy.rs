//! Policies as whoever composes them knows them. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

/// Whose prompts a policy is part of, from the highest to the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Scope {
    /// Everybody's.
    Global,
    /// One organization's.
    Organization,
    /// One workspace's.
    Workspace,
    /// One session's: the words of its user.
    Session,
}

impl Scope {
    /// From the name that it has in Postgres and in the resource.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Global, Self::Organization, Self::Workspace].into_iter().find(|scope| scope.as_str() == name)
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Global => "Global",
            Self::Organization => "Organization",
            Self::Workspace => "Workspace",
            Self::Session => "Session",
        }
    }
}

/// What happens to text from outside that looks like an injection, from the mildest to the strictest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Mode {
    /// It is reported.
    #[default]
    Detect,
    /// It is reported and cut out.
    Redact,
    /// It is refused.
    Reject,
}

impl Mode {
    /// From its name. A name that nobody knows is the strictest: an older runtime must not be laxer than the policy.
    pub fn parse(name: &str) -> Self {
        match name {
            "Detect" => Self::Detect,
            "Redact" => Self::Redact,
            _ => Self::Reject,
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "Detect",
            Self::Redact => "Redact",
            Self::Reject => "Reject",
        }
    }
}

/// A PromptPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `metadata.uid`.
    pub id: u128,
    /// Where it applies.
    pub scope: Scope,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`: the section that it is. A lower scope's policy of the same name takes its place.
    pub name: String,
    /// Generation of its spec.
    pub generation: i64,
    /// Order within the scope; the higher comes first.
    pub priority: i32,
    /// No lower scope can take its place.
    pub locked: bool,
    /// The text.
    pub template: String,
    /// Variables of the template.
    pub variables: BTreeMap<String, String>,
    /// What it wants done about injections.
    pub mode: Mode,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_an_unknown_mode_is_the_strictest() {
        for scope in [Scope::Global, Scope::Organization, Scope::Workspace] {
            assert_eq!(Scope::parse(scope.as_str()), Some(scope));
        }
        assert_eq!(Scope::parse("Session"), None, "nobody's policy");
        for mode in [Mode::Detect, Mode::Redact, Mode::Reject] {
            assert_eq!(Mode::parse(mode.as_str()), mode);
        }
        assert_eq!(Mode::parse("Quarantine"), Mode::Reject);
        assert!(Mode::Detect < Mode::Redact && Mode::Redact < Mode::Reject);
    }
}
