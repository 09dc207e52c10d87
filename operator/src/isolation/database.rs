//! Fences in Postgres: the catalogue against its rules, the live fences against the ones that the migrations left, and
//! SQL as a tenant's read-only login. The only repair is `app.restore_fences()`, which takes no argument.
use super::{CATALOGUE, Outcome};
use crate::{
    context::Context,
    tenancy::{self, failed, names::TenantRoles},
};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, PgConnection, PgPool};
use std::time::Duration;

/// A login that takes longer is no answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is wrong with the fences of the whole database, and whether `restore` could mend some of it.
pub struct Fences {
    /// For the status.
    pub outcome: Outcome,
    /// The live fences differ from those of the migrations.
    pub drifted: bool,
}

/// Compare the live fences with what they must be.
pub async fn fences(context: &Context) -> Fences {
    match look(context).await {
        Ok((findings, drifted)) => {
            Fences { outcome: Outcome::of(&findings, "they are those of the migrations"), drifted }
        }
        Err(error) => Fences { outcome: Outcome::unknown(error.to_string()), drifted: false },
    }
}

async fn look(context: &Context) -> tenancy::Result<(Vec<String>, bool)> {
    let pool = context.postgres()?;
    let mut findings: Vec<String> = sqlx::query_scalar("select finding from fences.drift()")
        .fetch_all(pool)
        .await
        .map_err(failed("compare the fences"))?;
    let drifted = !findings.is_empty();
    let weak: Vec<String> =
        sqlx::query_scalar(CATALOGUE).fetch_all(pool).await.map_err(failed("read the catalogue"))?;
    findings.extend(weak);
    Ok((findings, drifted))
}

/// Put the fences back; says what was done and what could not be.
pub async fn restore(pool: &PgPool) -> tenancy::Result<Vec<String>> {
    sqlx::query_scalar("select app.restore_fences()").fetch_all(pool).await.map_err(failed("restore the fences"))
}

/// Log in as the tenant's read-only role and try to cross into others.
pub async fn login(context: &Context, slug: &str, password: Option<SecretString>) -> Outcome {
    let Some(password) = password else {
        return Outcome::unknown("the tenant's Secret has no password yet");
    };
    match tokio::time::timeout(PATIENCE, try_login(context, slug, &password)).await {
        Ok(Ok(findings)) => Outcome::of(&findings, "its own rows and nothing else"),
        Ok(Err(error)) => Outcome::unknown(error.to_string()),
        Err(_) => Outcome::unknown("Postgres took too long to answer"),
    }
}

async fn try_login(context: &Context, slug: &str, password: &SecretString) -> tenancy::Result<Vec<String>> {
    let roles = TenantRoles::of(slug)?;
    let options = context.postgres()?.connect_options().as_ref().clone();
    let options = options
        .username(roles.read.as_str())
        .password(password.expose_secret())
        .application_name("agentapi-operator isolation probe");
    let mut connection = PgConnection::connect_with(&options).await.map_err(failed("log in as the read-only role"))?;
    // The setting that makes this login's transactions read-only is a courtesy that an attacker switches off.
    let mut tx = connection.begin_with("begin read write").await.map_err(failed("begin a transaction"))?;
    let findings = sqlx::query_scalar("select app.probe_isolation()")
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("try to cross into others"))?;
    tx.rollback().await.map_err(failed("roll back"))?;
    connection.close().await.map_err(failed("close the connection"))?;
    Ok(findings)
}
