//! Organizations as the API knows them before it has a tenant: how to tell whose token this is, and which database
//! role to take on. May touch: the view `app.tenants`.

use std::collections::HashSet;

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
}

impl Organization {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            slug: row.try_get("slug")?,
            role_name: row.try_get("role_name")?,
            issuer: row.try_get("issuer")?,
            audience: row.try_get("audience")?,
            jwks_uri: row.try_get("jwks_uri")?,
            max_sessions: row
                .try_get::<serde_json::Value, _>("quota")?
                .get("sessions")
                .and_then(serde_json::Value::as_i64),
        })
    }
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

    /// Organizations that are being deleted and whose sessions have had their time.
    pub async fn drained(&self) -> Result<HashSet<Uuid>, StoreError> {
        let ids = sqlx::query_scalar("select org_id from app.draining where drain_until <= now()");
        Ok(ids.fetch_all(&self.pool).await?.into_iter().collect())
    }

    /// The organization with this slug.
    pub async fn organization_by_slug(&self, slug: &str) -> Result<Option<Organization>, StoreError> {
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
