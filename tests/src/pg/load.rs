//! Many organizations with many rows, for plans and timings, and the queries that the runtime asks most.
use super::{Database, bin_dir};
use agentapi_runtime::store::{audit, messages, sessions};
use anyhow::{Context, Result, bail};
use sqlx::{Connection, Executor, PgConnection};
use std::process::Command;
use uuid::Uuid;

/// How many rows.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Organizations beside `acme`, which gets as much as each of them.
    pub organizations: i32,
    /// Sessions of an organization, by three users.
    pub sessions: i32,
    /// Messages of a session.
    pub messages: i32,
    /// Audit rows of an organization.
    pub audit: i32,
}

/// A query that the runtime asks all the time, in the runtime's own words.
#[derive(Clone, Copy, Debug)]
pub struct HotQuery {
    /// What it is for.
    pub name: &'static str,
    /// Table whose index must be used.
    pub table: &'static str,
    /// The column that says whose the rows are.
    organization: &'static str,
    /// `admin` or `user`.
    pub role: &'static str,
    sql: &'static str,
    /// `$1` and so on; `session` stands for one of the user who asks.
    parameters: &'static [&'static str],
}

impl HotQuery {
    /// As it is asked, about this session.
    pub fn with_rls(&self, session: Uuid) -> String {
        let numbered = self.parameters.iter().enumerate().rev();
        numbered.fold(self.sql.to_owned(), |text, (n, value)| {
            let value = if *value == "session" { format!("'{session}'") } else { (*value).to_owned() };
            text.replace(&format!("${}", n + 1), &value)
        })
    }

    /// The same with the condition that a program without policies could not do without.
    pub fn without_rls(&self, session: Uuid, organization: Uuid) -> String {
        self.with_rls(session).replacen("where ", &format!("where {} = '{organization}' and ", self.organization), 1)
    }
}

/// The queries behind the routes that are called most.
pub const HOT_QUERIES: &[HotQuery] = &[
    HotQuery {
        name: "a session by id (every routed request)",
        table: "sessions",
        organization: "s.org_id",
        role: "user",
        sql: sessions::SESSION_BY_ID,
        parameters: &["session"],
    },
    HotQuery {
        name: "the transcript of a session",
        table: "messages",
        organization: "org_id",
        role: "user",
        sql: messages::TRANSCRIPT,
        parameters: &["session", "0", "20000"],
    },
    HotQuery {
        name: "an admin's list of sessions",
        table: "sessions",
        organization: "s.org_id",
        role: "admin",
        sql: sessions::SESSIONS_PAGE,
        parameters: &["null", "null", "null", "50"],
    },
    HotQuery {
        name: "live sessions, for a quota",
        table: "sessions",
        organization: "org_id",
        role: "admin",
        sql: sessions::LIVE_SESSIONS,
        parameters: &[],
    },
    HotQuery {
        name: "the newest audit rows",
        table: "audit_log",
        organization: "org_id",
        role: "admin",
        sql: audit::AUDIT_BACK,
        parameters: &["null", "null", "null", "null", "null", "null", "null", "null", "50"],
    },
];

/// Fills a database that has the organization `acme` (`organization`), its `user` and `workspace`; gives back a session
/// of that user. Written by the superuser with triggers off: policies and keys are tested elsewhere.
pub async fn fill(db: &Database, scale: Scale, organization: Uuid, user: Uuid, workspace: Uuid) -> Result<Uuid> {
    let mut admin = PgConnection::connect(&db.admin_url()).await?;
    admin.execute("set session_replication_role = replica").await?;
    sqlx::query(
        "insert into organizations (id, slug, display_name, issuer, audience, org_claim_value)
         select gen_random_uuid(), 'load-' || n, 'x', 'https://idp.test', 'a', 'load-' || n from generate_series(1, $1) n",
    )
    .bind(scale.organizations)
    .execute(&mut admin)
    .await?;
    for statement in [
        "insert into users (org_id, id, subject)
         select o.id, gen_random_uuid(), 'load-' || n from organizations o, generate_series(1, 3) n where o.slug <> 'acme'",
        "insert into workspaces (org_id, id, name, k8s_namespace, agent_type, max_sessions)
         select o.id, gen_random_uuid(), 'main', 'team', 'claude', 10 from organizations o where o.slug <> 'acme'",
    ] {
        admin.execute(statement).await?;
    }
    // Nine of ten sessions are over.
    sqlx::query(
        "insert into sessions (org_id, id, workspace_id, user_id, agent_type, phase, ended_at)
         select w.org_id, gen_random_uuid(), w.id,
                (array(select u.id from users u where u.org_id = w.org_id order by u.id))[1 + n % 3], 'claude',
                case n % 10 when 0 then 'Running' else 'Ended' end, case n % 10 when 0 then null else now() end
         from workspaces w, generate_series(1, $1) n where w.name = 'main'",
    )
    .bind(scale.sessions)
    .execute(&mut admin)
    .await?;
    let session = Uuid::now_v7();
    sqlx::query(
        "insert into sessions (org_id, id, workspace_id, user_id, agent_type, phase) values ($1, $2, $3, $4, 'claude', 'Running')",
    )
    .bind(organization)
    .bind(session)
    .bind(workspace)
    .bind(user)
    .execute(&mut admin)
    .await?;
    sqlx::query(
        "insert into messages (org_id, session_id, id, user_id, role, content)
         select s.org_id, s.id, n, s.user_id, case n % 2 when 0 then 'agent' else 'user' end, repeat('word ', 40)
         from sessions s, generate_series(0, $1 - 1) n",
    )
    .bind(scale.messages)
    .execute(&mut admin)
    .await?;
    sqlx::query(
        "insert into audit_log (org_id, seq, org_slug, at, db_role, actor, action, target_kind, target_id, prev_hash, hash)
         select o.id, n + 1000, o.slug, now(), 'x', 'user:x', 'session.create', 'Session', 'x', sha256(''), sha256('')
         from organizations o, generate_series(1, $1) n",
    )
    .bind(scale.audit)
    .execute(&mut admin)
    .await?;
    admin.execute("vacuum analyze").await?;
    admin.close().await?;
    Ok(session)
}

/// Transactions per second of a `pgbench` script that the runtime's login runs on so many connections.
pub fn pgbench(db: &Database, script: &str, clients: u32, seconds: u32) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("script.sql");
    std::fs::write(&file, script)?;
    let url = url::Url::parse(&db.runtime_url())?;
    let output = Command::new(bin_dir()?.join("pgbench"))
        .args(["-n", "-M", "prepared", "-c", &clients.to_string(), "-j", "2", "-T", &seconds.to_string()])
        .args(["-h", "127.0.0.1", "-p", &db.server().port().to_string(), "-U", url.username(), "-f"])
        .arg(&file)
        .arg(db.name())
        .env("PGPASSWORD", url.password().unwrap_or_default())
        .output()
        .context("can't start pgbench; it is in Debian's postgresql-15")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    match tps {
        Some(tps) if output.status.success() => Ok(tps),
        _ => bail!("pgbench failed: {text}{}", String::from_utf8_lossy(&output.stderr)),
    }
}
