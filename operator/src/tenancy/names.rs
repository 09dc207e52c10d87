//! Names that go into SQL text. Nothing else does.
use agentapi_crds::names;
use std::fmt;
use uuid::Uuid;

/// Longest identifier that Postgres does not cut off.
const LONGEST: usize = 63;

/// A name that can't be one of our identifiers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} can't be part of a Postgres role; use 1 to 40 characters of a-z, 0-9 and -, not ending in -ro")]
pub struct Error(pub String);

/// A lower-case identifier of at most 63 bytes, shown quoted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identifier(String);

impl Identifier {
    fn new(name: String) -> Result<Self, Error> {
        let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
        let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if starts && plain && name.len() <= LONGEST { Ok(Self(name)) } else { Err(Error(name)) }
    }

    /// The bare name, for comparing and binding.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

/// The roles of a tenant that are called after its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRoles {
    /// `org_<slug>`: what an administrator becomes to see what the tenant sees.
    pub tenant: Identifier,
    /// `org_<slug>_ro`: what people log in as to read.
    pub read: Identifier,
}

impl TenantRoles {
    /// The roles of the organization called `slug`.
    pub fn of(slug: &str) -> Result<Self, Error> {
        let fits = slug.len() <= 40
            && slug.starts_with(|c: char| c.is_ascii_lowercase())
            && slug.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !slug.ends_with('-')
            // org_acme_ro is the read-only role of acme and would also be the role of acme-ro.
            && !slug.ends_with("-ro");
        if !fits {
            return Err(Error(slug.to_owned()));
        }
        Ok(Self {
            tenant: Identifier::new(names::tenant_role(slug))?,
            read: Identifier::new(names::tenant_read_role(slug))?,
        })
    }
}

/// `{<id>}`: what the runtime becomes.
#[must_use]
pub fn id_role(id: Uuid) -> Identifier {
    Identifier(names::tenant_id_role(&id.to_string()))
}

/// A string literal. Only for text of our own making (verifiers and digests), and checked all the same.
pub(super) fn literal(text: &str) -> Result<String, Error> {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "$:+/=-_. ".contains(c));
    if plain { Ok(format!("'{text}'")) } else { Err(Error("a value with unexpected characters".into())) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_role_of_one_tenant_is_never_the_read_role_of_another() {
        assert!(TenantRoles::of("acme-ro").is_err());
        assert!(TenantRoles::of("acme").is_ok());
        assert!(TenantRoles::of("acme-row").is_ok());
    }

    proptest! {
        #[test]
        fn nothing_that_could_leave_the_quotes_is_an_identifier(name in "\\PC{0,70}") {
            if let Ok(identifier) = Identifier::new(name.clone()) {
                prop_assert_eq!(identifier.to_string(), format!("\"{name}\""));
                prop_assert!(!name.contains('"') && !name.contains('\\') && !name.contains('\0'));
            }
            if let Ok(literal) = literal(&name) {
                prop_assert_eq!(literal.matches('\'').count(), 2);
                prop_assert!(!literal.contains('\\'));
            }
        }

        #[test]
        fn every_name_that_the_crd_admits_gives_two_distinct_roles(slug in "[a-z]([a-z0-9-]{0,38}[a-z0-9])?") {
            if slug.ends_with("-ro") {
                prop_assert!(TenantRoles::of(&slug).is_err());
            } else {
                let roles = TenantRoles::of(&slug).unwrap();
                prop_assert!(roles.tenant != roles.read);
                prop_assert!(roles.read.as_str().len() <= LONGEST);
            }
        }

        #[test]
        fn no_name_gives_the_role_of_an_id(slug in "[a-z]([a-z0-9-]{0,38}[a-z0-9])?", id: u128) {
            let id = id_role(Uuid::from_u128(id));
            let within = id.as_str().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap();
            prop_assert!(within.chars().all(|c| c.is_ascii_hexdigit() || c == '-'));
            if let Ok(roles) = TenantRoles::of(&slug) {
                prop_assert!(roles.tenant != id && roles.read != id);
            }
        }

        #[test]
        fn two_tenants_never_share_a_role(
            a in "[a-z]([a-z0-9-]{0,6}[a-z0-9])?", b in "[a-z]([a-z0-9-]{0,6}[a-z0-9])?"
        ) {
            if let (Ok(a_roles), Ok(b_roles)) = (TenantRoles::of(&a), TenantRoles::of(&b))
                && a != b
            {
                let all = [&a_roles.tenant, &a_roles.read, &b_roles.tenant, &b_roles.read];
                let distinct: std::collections::BTreeSet<_> = all.into_iter().collect();
                prop_assert_eq!(distinct.len(), 4);
            }
        }
    }
}
