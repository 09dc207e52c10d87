//! Organizations as the API knows them before it has a tenant: how to tell whose token this is, and which database
//! role to take on. May touch: the view `app.tenants`.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{Store, StoreError};

/// An organization's identity columns.
#[derive(Debug, Clone)]
pub struct Organization {
    /// Row id.
    pub id: Uuid,
    /// Name of the Organization resource.
    pub slug: String,
    /// Database role of the tenant.
    pub role_name: String,
    /// `iss` of its users' tokens.
    pub issuer: String,
    /// `aud` of its users' tokens.
    pub audience: String,
    /// Where the signing keys are; without it, discovery.
    pub jwks_uri: Option<String>,
    /// Most sessions at a time; without it, no limit of the organization's own.
    pub max_sessions: Option<i64>,
    /// How many requests it may send.
    pub rates: Rates,
}

/// Requests per second, and how many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// On average.
    pub per_second: f64,
    /// At once.
    pub burst: u32,
}

impl Rate {
    /// What one of so many replicas lets in; the burst never below one.
    #[must_use]
    pub fn share(self, replicas: NonZeroU32) -> Self {
        Self {
            per_second: self.per_second / f64::from(replicas.get()),
            burst: self.burst.div_ceil(replicas.get()).max(1),
        }
    }
}

/// What an Organization says about a rate; the rest is the platform's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnRate {
    /// Requests per second.
    pub per_second: Option<u32>,
    /// At once.
    pub burst: Option<u32>,
}

impl OwnRate {
    fn of(quota: &Value) -> Self {
        let number = |key: &str| u32::try_from(quota.get(key)?.as_u64()?).ok().filter(|number| *number > 0);
        Self { per_second: number("requestsPerSecond"), burst: number("burst") }
    }

    /// With the platform's defaults for what it does not say. Who says a rate and no burst gets two seconds' worth.
    #[must_use]
    pub fn over(self, default: Rate) -> Rate {
        let per_second = self.per_second.map_or(default.per_second, f64::from);
        let burst = self.burst.or(self.per_second.map(|rate| rate.saturating_mul(2))).unwrap_or(default.burst);
        Rate { per_second, burst }
    }
}

/// Both rates of an organization.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// All its requests.
    pub organization: OwnRate,
    /// Those of each user.
    pub user: OwnRate,
}

impl Organization {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let quota: Value = row.try_get("quota")?;
        Ok(Self {
            id: row.try_get("id")?,
            slug: row.try_get("slug")?,
            role_name: row.try_get("role_name")?,
            issuer: row.try_get("issuer")?,
            audience: row.try_get("audience")?,
            jwks_uri: row.try_get("jwks_uri")?,
            max_sessions: quota.get("sessions").and_then(Value::as_i64),
            rates: Rates {
                organization: OwnRate::of(&quota),
                user: quota.get("perUser").map(OwnRate::of).unwrap_or_default(),
            },
        })
    }

    /// One without limits of its own.
    #[cfg(test)]
    pub(crate) fn for_tests(slug: &str) -> Self {
        Self {
            id: Uuid::nil(),
            slug: slug.to_owned(),
            role_name: format!("org_{slug}"),
            issuer: "https://login.example.com".to_owned(),
            audience: "agentapi".to_owned(),
            jwks_uri: None,
            max_sessions: None,
            rates: Rates::default(),
        }
    }
}

/// An organization on its way out.
#[derive(Debug, Clone)]
pub struct Draining {
    /// RFC 3339, UTC: its sessions may go on until then.
    pub until: String,
    /// They have had their time.
    pub over: bool,
}

impl Store {
    /// The organization whose tokens have this issuer and this `org_id`.
    pub async fn resolve_identity(&self, issuer: &str, org_claim: &str) -> Result<Option<Organization>, StoreError> {
        let row = sqlx::query(
            "select id, slug, role_name::text as role_name, issuer, audience, jwks_uri, quota
             from app.resolve_identity($1, $2)",
        )
        .bind(issuer)
        .bind(org_claim)
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.as_ref().map(Organization::from_row).transpose()?)
    }

    /// All organizations, for the loops of the platform.
    pub async fn organizations(&self) -> Result<Vec<Organization>, StoreError> {
        let rows = sqlx::query(
            "select id, slug, role_name::text as role_name, issuer, audience, jwks_uri, quota
             from app.tenants order by slug",
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.iter().map(Organization::from_row).collect::<Result<_, _>>()?)
    }

    /// Organizations that are being deleted.
    pub async fn draining(&self) -> Result<HashMap<Uuid, Draining>, StoreError> {
        let rows = sqlx::query(
            "select org_id, drain_until <= now() as over,
                    to_char(drain_until at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') as until
             from app.draining",
        );
        let draining = |row: &PgRow| {
            Ok::<_, sqlx::Error>((
                row.try_get("org_id")?,
                Draining { until: row.try_get("until")?, over: row.try_get("over")? },
            ))
        };
        Ok(rows.fetch_all(&self.pool).await?.iter().map(draining).collect::<Result<_, _>>()?)
    }

    /// The organization with this slug, as it was a moment ago: session pods ask with each request, as often as they
    /// like, and the few connections that no tenant waits for are everybody's.
    pub async fn organization_by_slug(&self, slug: &str) -> Result<Option<Organization>, StoreError> {
        let find = async { self.find_by_slug(slug).await.map_err(Some)?.map(Arc::new).ok_or(None) };
        match self.by_slug.try_get_with_by_ref(slug, find).await {
            Ok(found) => Ok(Some(Organization::clone(&found))),
            Err(why) => match Arc::try_unwrap(why) {
                Ok(Some(error)) => Err(error),
                // Somebody else who waited for the same has the error.
                Err(shared) if shared.is_some() => Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
                Ok(None) | Err(_) => Ok(None),
            },
        }
    }

    async fn find_by_slug(&self, slug: &str) -> Result<Option<Organization>, StoreError> {
        let row = sqlx::query(
            "select id, slug, role_name::text as role_name, issuer, audience, jwks_uri, quota
             from app.tenants where slug = $1",
        )
        .bind(slug)
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.as_ref().map(Organization::from_row).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_organization_says_as_much_as_it_likes() {
        let default = Rate { per_second: 10.0, burst: 15 };
        let rate = |quota: Value| {
            let Rate { per_second, burst } = OwnRate::of(&quota).over(default);
            (per_second, burst)
        };
        assert_eq!(rate(json!({})), (10.0, 15));
        assert_eq!(rate(json!({"requestsPerSecond": 100})), (100.0, 200));
        assert_eq!(rate(json!({"burst": 3})), (10.0, 3));
        assert_eq!(rate(json!({"requestsPerSecond": 100, "burst": 5})), (100.0, 5));
        assert_eq!(rate(json!({"requestsPerSecond": 0, "burst": -1})), (10.0, 15), "the schema refuses these");
    }
}
