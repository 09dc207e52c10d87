//! Reads the catalogue for anything that weakens the fences between organizations.
use anyhow::Result;
use sqlx::PgConnection;

/// One sentence for each weak spot of this database; none when all is well.
pub async fn findings(connection: &mut PgConnection) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(include_str!("catalogue.sql")).fetch_all(connection).await?)
}
