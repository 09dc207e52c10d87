//! The snapshot of the fences (migration 0010) around a run of migrations: what is live is put right before new files
//! build on it, and what they leave is what must be from then on. May touch: schema `fences`, as agentapi_owner.
use super::{Error, step};
use sqlx::PgConnection;

/// Before migrations: repair, so that what somebody weakened does not become the rule, and forget the snapshot, so that
/// nobody undoes half of a migration. Nothing when there is none to apply: then the operator finds what is wrong, and
/// tells it.
pub(super) async fn before(database: &mut PgConnection, pending: bool) -> Result<(), Error> {
    if !pending || !exists(database).await? {
        return Ok(());
    }
    let done: Vec<String> = sqlx::query_scalar("select app.restore_fences()")
        .fetch_all(&mut *database)
        .await
        .map_err(step("put the fences back"))?;
    for fence in done {
        tracing::warn!(fence, "a fence was not as the last migration left it");
    }
    sqlx::query("delete from fences.snapshot").execute(database).await.map_err(step("forget the fences"))?;
    Ok(())
}

/// After migrations: this is how the fences must be.
pub(super) async fn after(database: &mut PgConnection) -> Result<(), Error> {
    let known: bool = sqlx::query_scalar("select exists (select from fences.snapshot)")
        .fetch_one(&mut *database)
        .await
        .map_err(step("look for the fences"))?;
    if !known {
        let fences: i64 = sqlx::query_scalar("select fences.take_snapshot()")
            .fetch_one(database)
            .await
            .map_err(step("remember the fences"))?;
        tracing::info!(fences, "the fences of the database are remembered");
    }
    Ok(())
}

async fn exists(database: &mut PgConnection) -> Result<bool, Error> {
    sqlx::query_scalar("select to_regclass('fences.snapshot') is not null")
        .fetch_one(database)
        .await
        .map_err(step("look for the fences"))
}
