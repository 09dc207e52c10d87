//! Tries a tenant's role against the fences, and takes everything back.

use super::identity::Organization;
use super::{Store, StoreError, TenantScope};

impl Store {
    /// One sentence for each way out of its own rows that the tenant's role found.
    pub async fn probe_isolation(&self, organization: &Organization) -> Result<Vec<String>, StoreError> {
        let mut tenant = self.tenant_tx(&TenantScope::system(organization)).await?;
        let findings = sqlx::query_scalar("select app.probe_isolation()").fetch_all(&mut *tenant.tx).await?;
        tenant.tx.rollback().await?;
        Ok(findings)
    }
}
