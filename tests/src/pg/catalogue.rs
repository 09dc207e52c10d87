//! Reads the catalogue for anything that weakens the fences between organizations: the query that the operator asks too.
use agentapi_operator::isolation::CATALOGUE;
use anyhow::Result;
use sqlx::PgConnection;

/// One sentence for each weak spot of this database; none when all is well.
pub async fn findings(connection: &mut PgConnection) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(CATALOGUE).fetch_all(connection).await?)
}
