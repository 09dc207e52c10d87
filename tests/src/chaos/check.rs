//! What must be true after every kill: acknowledged messages and audit rows are there, each audit chain is whole, no row
//! belongs to two tenants, and no fence of the database is open.

use std::collections::BTreeMap;
use std::time::Duration;

use agentapi_runtime::audit::action;
use agentapi_runtime::audit::chain::{Head, Row, Verifier};
use anyhow::{Context, Result, bail, ensure};
use url::Url;
use uuid::Uuid;

use super::work::Work;
use crate::cluster::{Cluster, eventually};

const SYSTEM: &str = "agentapi-system";

/// Checks everything; gives back how many acknowledged things were found.
pub(super) async fn all(cluster: &Cluster, work: &Work) -> Result<usize> {
    eventually("Postgres answers", Duration::from_secs(60), async || {
        Ok(sql(cluster, "select 1").map(drop).map_err(|error| format!("{error:#}")))
    })
    .await?;
    let found = messages(work).await? + audit(cluster, work)?;
    tenants_apart(cluster, &work.run)?;
    let findings = sql(cluster, agentapi_operator::isolation::CATALOGUE)?;
    ensure!(findings.is_empty(), "the catalogue: {findings}");
    Ok(found)
}

/// Every acknowledged message is in its conversation, once, and in no other.
async fn messages(work: &Work) -> Result<usize> {
    let mut found = 0;
    for talk in &work.talks {
        let messages = talk.api.stable(&talk.session, Duration::from_secs(90)).await?;
        let said: Vec<&str> = messages
            .iter()
            .filter(|message| message["role"] == "user")
            .filter_map(|message| message["content"].as_str())
            .collect();
        for text in &talk.acknowledged {
            let times = said.iter().filter(|said| *said == text).count();
            ensure!(times == 1, "acknowledged message {text:?} is there {times} times; the session has {said:?}");
        }
        let foreign = work.talks.iter().filter(|other| other.organization != talk.organization);
        for other in foreign.flat_map(|other| &other.acknowledged) {
            ensure!(!said.contains(&other.as_str()), "{} has a message of another tenant: {other}", talk.organization);
        }
        found += talk.acknowledged.len();
    }
    Ok(found)
}

/// Every session that was created is in the audit log of its organization and in no other, and so is what was said in
/// them; each chain is whole.
fn audit(cluster: &Cluster, work: &Work) -> Result<usize> {
    // One statement, so that rows and heads are of the same moment.
    let lines = sql(
        cluster,
        "select line from (
             select 0 as kind, org_id, seq, jsonb_build_object('org_id', org_id, 'seq', seq, 'org_slug', org_slug, 'at', at,
                 'db_role', db_role, 'actor', actor, 'action', action, 'target_kind', target_kind, 'target_id', target_id,
                 'request_id', request_id, 'source_ip', source_ip, 'user_agent', user_agent, 'detail', detail,
                 'config_digest', config_digest, 'prev_hash', encode(prev_hash, 'hex'), 'hash', encode(hash, 'hex'))::text as line
             from audit_log
             union all
             select 1, org_id, seq, concat_ws('|', org_id, seq, encode(hash, 'hex')) from audit_heads
         ) as everything order by kind, org_id, seq",
    )?;
    let mut chains: BTreeMap<Uuid, Vec<Row>> = BTreeMap::new();
    let mut heads = BTreeMap::new();
    for line in lines.lines() {
        if line.starts_with('{') {
            let row: Row = serde_json::from_str(line).with_context(|| format!("audit row {line}"))?;
            chains.entry(row.org_id).or_default().push(row);
        } else {
            let [org, seq, hash] = line.split('|').collect::<Vec<_>>()[..] else { bail!("audit head {line}") };
            heads.insert(org.parse::<Uuid>()?, Head { seq: seq.parse()?, hash: hash.to_owned() });
        }
    }
    for (organization, rows) in &chains {
        let mut verifier = Verifier::new(*organization);
        for row in rows {
            verifier.push(row).with_context(|| format!("the audit log of {}", row.org_slug))?;
        }
        verifier.finish(heads.get(organization))?;
    }
    for (organization, session) in &work.sessions {
        let rows: Vec<&Row> =
            chains.values().flatten().filter(|row| row.target_id.as_deref() == Some(session)).collect();
        let created = rows.iter().filter(|row| row.action == "session.create").count();
        ensure!(created == 1, "session {session} was acknowledged and has {created} audit rows");
        ensure!(
            rows.iter().all(|row| row.org_slug == *organization),
            "session {session} is in another tenant's audit log"
        );
    }
    for talk in &work.talks {
        let told = chains.values().flatten().filter(|row| {
            row.action == action::SESSION_MESSAGE
                && row.target_id.as_ref() == Some(&talk.session)
                && row.org_slug == talk.organization
        });
        // What was not acknowledged may have a row all the same.
        let (told, said) = (told.count(), talk.acknowledged.len());
        ensure!(
            told >= said,
            "{said} messages of session {} were acknowledged and {told} have audit rows",
            talk.session
        );
    }
    Ok(work.sessions.len())
}

/// For each foreign key between tables that have an organization: both ends are of the same one. The schema says so;
/// this reads the rows.
fn tenants_apart(cluster: &Cluster, run: &str) -> Result<()> {
    let checks = sql(
        cluster,
        "select format('select %L, count(*) from %s a join %s b on %s where a.org_id is distinct from b.org_id',
                c.conrelid::regclass || '.' || c.conname, c.conrelid::regclass, c.confrelid::regclass,
                (select string_agg(format('a.%I = b.%I', f.attname, t.attname), ' and ')
                 from unnest(c.conkey, c.confkey) as k(f, t)
                 join pg_attribute f on f.attrelid = c.conrelid and f.attnum = k.f
                 join pg_attribute t on t.attrelid = c.confrelid and t.attnum = k.t
                 where f.attname <> 'org_id'))
         from pg_constraint c
         where c.contype = 'f' and c.connamespace = 'public'::regnamespace and array_length(c.conkey, 1) > 1
           and exists (select from pg_attribute where attrelid = c.conrelid and attname = 'org_id' and not attisdropped)
           and exists (select from pg_attribute where attrelid = c.confrelid and attname = 'org_id' and not attisdropped)",
    )?;
    ensure!(checks.lines().count() >= 4, "the schema has no foreign keys between tenants' tables any more: {checks}");
    let all = checks.lines().collect::<Vec<_>>().join(" union all ");
    for line in sql(cluster, &all)?.lines() {
        ensure!(line.ends_with("|0"), "rows of two tenants are connected: {line}");
    }
    // What the conversations say is in the rows of their own tenants.
    let strayed = sql(
        cluster,
        &format!(
            "select count(*) from messages m join organizations o on o.id = m.org_id
             where (m.content like '%{run} acme %' and o.slug <> 'acme') or (m.content like '%{run} globex %' and o.slug <> 'globex')"
        ),
    )?;
    ensure!(strayed == "0", "{strayed} messages are in another tenant's rows");
    Ok(())
}

/// The answer of the installation's Postgres, as its superuser.
fn sql(cluster: &Cluster, query: &str) -> Result<String> {
    use base64::Engine;
    let secret = cluster.get("secret", Some(SYSTEM), "agentapi-postgres")?.context("no Secret agentapi-postgres")?;
    let encoded = secret["data"]["admin-url"].as_str().unwrap_or_default();
    let mut url: Url = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(encoded)?)?.parse()?;
    // From inside its own pod.
    url.set_host(Some("127.0.0.1"))?;
    url.set_path("agentapi");
    let script = "PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); exec psql -qAtX -v ON_ERROR_STOP=1 \"$0\" -f -";
    let pod = "statefulset/agentapi-postgres";
    let out = cluster.try_kubectl(&["-n", SYSTEM, "exec", "-i", pod, "--", "sh", "-c", script, url.as_str()], query)?;
    ensure!(out.ok, "psql: {}", out.stderr);
    Ok(out.stdout.trim().to_owned())
}
