//! Reading the log: filters and cursors, the export in both forms, checkpoints that the operator signs, and the program
//! that verifies all of that offline.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use agentapi_operator::metrics::Metrics;
use agentapi_operator::signing::Signer;
use agentapi_operator::{checkpoints, tenancy};
use agentapi_runtime::audit::chain::Row;
use agentapi_tests::pg::become_tenant;
use agentapi_tests::serve::{Platform, Replica, Tenant, idp, pem};
use anyhow::{Context, Result};
use jiff::Timestamp;
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

const AUDIT: &str = env!("CARGO_BIN_EXE_audit");

struct World {
    platform: Platform,
    replica: Replica,
    acme: Tenant,
    signer: Signer,
    metrics: Arc<Metrics>,
}

impl World {
    async fn new() -> Result<Self> {
        let platform = Platform::start(SESSION_POD).await?;
        let replica = platform.replica().await?;
        let acme = platform.tenant("acme").await?;
        let signer = Signer::from_pem(pem(&idp::ed25519()?.0).as_bytes())?;
        Ok(Self { platform, replica, acme, signer, metrics: Metrics::new()? })
    }

    /// That many rows by somebody, the n-th about the thing `t<n % 10>` and in the request `r<n>`.
    async fn fill(&self, rows: i32) -> Result<()> {
        let mut runtime = PgConnection::connect(&self.platform.db.runtime_url()).await?;
        let mut tx = runtime.begin().await?;
        become_tenant(&mut tx, &self.acme.organization, None, "admin").await?;
        sqlx::query(
            "insert into audit_log (actor, action, target_kind, target_id, request_id, source_ip, detail)
             select 'user:' || n % 2, 'a.' || n % 3, 'thing', 't' || n % 10, 'r' || n, '203.0.113.7',
                    jsonb_build_object('n', n, 'text', 'ä\"\\')
             from generate_series(1, $1) n",
        )
        .bind(rows)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    async fn checkpoint(&self) -> Result<usize> {
        let pool = tenancy::pool(&SecretString::from(self.platform.db.operator_url()))?;
        let made = checkpoints::make(&pool, &self.signer, Timestamp::now(), &self.metrics).await?;
        pool.close().await;
        Ok(made)
    }

    async fn text(&self, path: &str) -> Result<String> {
        let response = self.replica.api(Some(&self.acme.admin))?.request(Method::GET, path).send().await?;
        anyhow::ensure!(response.status() == 200, "{path}: {}", response.status());
        Ok(response.text().await?)
    }

    async fn list(&self, query: &str) -> Result<Value> {
        self.replica.api(Some(&self.acme.admin))?.get(&format!("/v1/audit?{query}")).await?.expect(200)
    }

    fn file(&self, name: &str, content: &str) -> Result<String> {
        Ok(self.platform.file(name, content)?.display().to_string())
    }
}

fn seqs(page: &Value) -> Vec<i64> {
    page["entries"].as_array().into_iter().flatten().filter_map(|entry| entry["seq"].as_i64()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_and_cursors_find_what_they_say() -> Result<()> {
    let world = World::new().await?;
    world.list("limit=1").await?;
    let first = i64::try_from(world.text("/v1/audit/export").await?.lines().count())?;
    world.fill(30).await?;
    for (query, expected) in [
        ("action=a.1", 10),
        ("actor=user:1", 15),
        ("targetKind=thing", 30),
        ("targetId=t3", 3),
        ("requestId=r17", 1),
        ("action=a.1&actor=user:1&targetId=t1", 1),
        ("action=nothing", 0),
        ("since=2020-01-01T00:00:00Z&targetKind=thing", 30),
        ("until=2020-01-01T00:00:00%2B02:00", 0),
    ] {
        assert_eq!(seqs(&world.list(query).await?).len(), expected, "{query}");
    }
    // By time: from the tenth of them on, and what is before it.
    let at = world.list("requestId=r10").await?["entries"][0]["at"].as_str().context("a time")?.to_owned();
    assert_eq!(seqs(&world.list(&format!("since={at}&targetKind=thing")).await?).len(), 21);
    assert_eq!(seqs(&world.list(&format!("until={at}&targetKind=thing")).await?).len(), 9);
    // Pages back and on, each row once.
    for (key, next) in [("before", "nextBefore"), ("after", "nextAfter")] {
        let mut query = if key == "after" { "limit=7&after=0".to_owned() } else { "limit=7".to_owned() };
        let mut all = Vec::new();
        loop {
            let page = world.list(&query).await?;
            all.extend(seqs(&page));
            assert_eq!(page["head"]["seq"], first + 30);
            let Some(cursor) = page[next].as_i64() else { break };
            query = format!("limit=7&{key}={cursor}");
        }
        assert_eq!(all.is_sorted(), key == "after");
        all.sort_unstable();
        assert_eq!(all, (1..=first + 30).collect::<Vec<_>>(), "{key}");
    }
    let api = world.replica.api(Some(&world.acme.admin))?;
    for (query, words) in [
        ("limit=0", "1 to 1000"),
        ("limit=1001", "1 to 1000"),
        ("limit=x", "not valid"),
        ("before=1&after=1", "not both"),
        ("before=0", "1 or more"),
        ("after=-1", "0 or more"),
        ("since=yesterday", "RFC 3339"),
        ("since=2026-01-01", "RFC 3339"),
        ("until=2026-01-01T00:00:00+02:00", "%2B"),
        ("since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "before until"),
        ("action=", "1 to 512"),
        ("targetId=a%00b", "no NUL"),
        ("colour=red", "unknown field"),
    ] {
        let answer = api.get(&format!("/v1/audit?{query}")).await?;
        assert_eq!((answer.status.as_u16(), answer.problem()), (400, "bad-request"), "{query}");
        let detail = answer.body["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(words), "{query}: {detail}");
    }
    for path in
        ["export?format=xml", "export?after=-1", "export?limit=3", "checkpoints?limit=0", "checkpoints?after=-1"]
    {
        assert_eq!(api.get(&format!("/v1/audit/{path}")).await?.status, 400, "{path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_export_is_the_whole_log_in_both_forms_and_of_nobody_else() -> Result<()> {
    let world = World::new().await?;
    let globex = world.platform.tenant("globex").await?;
    world.replica.api(Some(&globex.admin))?.get("/v1/audit").await?.expect(200)?;
    world.list("limit=1").await?;
    // More than two pages of the stream.
    world.fill(500).await?;
    let text = world.text("/v1/audit/export").await?;
    let rows: Vec<Row> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert!(rows.len() > 500);
    assert!(rows.iter().zip(1..).all(|(row, seq)| row.seq == seq && row.org_id == world.acme.organization.id));
    let later: Vec<Row> =
        world.text("/v1/audit/export?after=400").await?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(later, rows[400..]);
    let events = world.text("/v1/audit/export?format=ocsf").await?;
    let events: Vec<Value> = events.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let inside: Vec<Row> = events
        .iter()
        .map(|event| serde_json::from_value(event["unmapped"]["audit"].clone()))
        .collect::<Result<_, _>>()?;
    assert_eq!(inside, rows);
    assert_eq!(
        (&events[0]["class_uid"], &events[0]["api"]["operation"]),
        (&json!(6003), &json!("organization.create"))
    );
    Ok(())
}

struct Run {
    code: Option<i32>,
    out: String,
    err: String,
}

fn audit(arguments: &[&str], stdin: &str) -> Result<Run> {
    let mut child = Command::new(AUDIT)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut pipe = child.stdin.take().context("stdin")?;
    let text = stdin.to_owned();
    let writer = std::thread::spawn(move || pipe.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    // A program that does not read its input closes it.
    let _ = writer.join();
    Ok(Run {
        code: output.status.code(),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_verifies_offline_and_finds_what_was_done() -> Result<()> {
    let world = World::new().await?;
    world.list("limit=1").await?;
    world.fill(20).await?;
    assert!(world.checkpoint().await? >= 1);
    assert_eq!(world.checkpoint().await?, 0, "a silent log needs no new checkpoint");
    world.fill(20).await?;
    assert_eq!(world.checkpoint().await?, 1);
    let known = world.file("checkpoints.json", &world.text("/v1/audit/checkpoints").await?)?;
    let keys = world.file("keys.json", &world.text("/v1/audit/keys").await?)?;
    let head = world.list("limit=1").await?["head"].to_string();
    let head = world.file("head.json", &head)?;
    world.fill(5).await?;
    let text = world.text("/v1/audit/export").await?;
    let export = world.file("log.jsonl", &text)?;
    let lines: Vec<&str> = text.lines().collect();

    let run = audit(&["verify", &export, "--checkpoints", &known, "--public-key", &keys, "--head", &head], "")?;
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{}", run.out);
    for words in [
        format!("OK: the audit log of {} ({})", world.acme.organization.slug, world.acme.organization.id),
        format!("rows: {}", lines.len()),
        "from: row 1 of ".to_owned(),
        format!("to:   row {} of ", lines.len()),
        format!("head: {{\"seq\": {}, \"hash\": \"", lines.len()),
        format!("checkpoints: 2 of 2 are in these rows and fit; rows up to {} are those of", lines.len() - 5),
    ] {
        assert!(run.out.contains(&words), "{words}\n{}", run.out);
    }
    assert_eq!(audit(&["verify", "-"], &text)?.code, Some(0));

    let with = |text: &str| audit(&["verify", "-", "--checkpoints", &known, "--public-key", &keys], text);
    let join = |lines: &[&str]| lines.join("\n") + "\n";
    let mut swapped = lines.clone();
    swapped.swap(3, 4);
    for (text, words) in [
        (text.replacen("203.0.113.7", "203.0.113.8", 1), "was edited"),
        (join(&[&lines[..4], &lines[5..]].concat()), "line 5: row 6 comes where row 5 belongs"),
        (join(&swapped), "line 4: row 5 comes where row 4 belongs"),
        (join(&[&lines[..5], &lines[4..]].concat()), "line 6: row 5 comes where row 6 belongs"),
        (join(&lines[..30]), "the newest rows were removed"),
        (text.replacen("{\"org_id\"", "{\"org_id", 1), "line 1 is not a row"),
    ] {
        let run = with(&text)?;
        assert_eq!(run.code, Some(1), "{words}: {}{}", run.out, run.err);
        assert!(run.err.contains("FAULT: ") && run.err.contains(words), "{words}: {}", run.err);
    }
    // The end that no checkpoint knows yet: nothing can tell, and the program says what it knows.
    assert_eq!(with(&join(&lines[..lines.len() - 2]))?.code, Some(0));
    let forged = std::fs::read_to_string(&known)?.replacen("\"statement\":\"ey", "\"statement\":\"eY", 1);
    let forged = world.file("forged.json", &forged)?;
    let run = audit(&["verify", &export, "--checkpoints", &forged, "--public-key", &keys], "")?;
    assert_eq!(run.code, Some(1), "{}", run.err);

    for arguments in [
        &["verify", "/nowhere"][..],
        &["verify"],
        &["verify", &export, "--head", &export],
        &["verify", &export, "--checkpoints", &known],
        &["verify", &export, "--checkpoints", &known, "--public-key", &known],
        &["verify", &export, "--checkpoints", &keys, "--public-key", &keys],
    ] {
        let run = audit(arguments, "")?;
        assert_eq!(run.code, Some(2), "{arguments:?}: {}{}", run.out, run.err);
        assert!(!run.err.is_empty());
    }
    assert_eq!(audit(&["verify", "-"], "")?.code, Some(2), "no rows: nothing was verified");
    let help = audit(&["verify", "--help"], "")?;
    assert_eq!(help.code, Some(0));
    assert!(help.out.contains("Exit codes") && help.out.contains("--checkpoints"), "{}", help.out);

    // The same from Postgres, as the organization's read-only login.
    let url = world.platform.db.read_only_url(&world.acme.organization);
    let run = audit(&["export", "--database-url", &url], "")?;
    assert_eq!((run.code, run.out == text), (Some(0), true), "{}", run.err);
    let run = audit(&["export", "--database-url", "postgres://x:secret@127.0.0.1:1/x"], "")?;
    assert_eq!((run.code, run.err.contains("secret")), (Some(2), false), "{}", run.err);
    Ok(())
}

/// Whoever owns the database can rewrite the log so that the chain is whole again; the checkpoints tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_rewritten_in_the_database_does_not_fit_its_checkpoints() -> Result<()> {
    let world = World::new().await?;
    world.list("limit=1").await?;
    world.fill(10).await?;
    world.checkpoint().await?;
    let known = world.file("checkpoints.json", &world.text("/v1/audit/checkpoints").await?)?;
    let keys = world.file("keys.json", &world.text("/v1/audit/keys").await?)?;
    let mut admin = PgConnection::connect(&world.platform.db.admin_url()).await?;
    let rewrite = "
        alter table audit_log disable trigger user; alter table audit_heads disable trigger user;
        do $$
        declare r audit_log; link bytea := decode(repeat('00', 32), 'hex');
        begin
            for r in select * from audit_log where org_id = (select id from organizations where slug = current_setting('t.slug'))
                     order by seq loop
                r.prev_hash := link;
                if r.request_id = 'r4' then r.actor := 'user:nobody'; end if;
                r.hash := app.audit_hash(r);
                link := r.hash;
                update audit_log set actor = r.actor, prev_hash = r.prev_hash, hash = r.hash
                where org_id = r.org_id and seq = r.seq;
                update audit_heads set hash = r.hash where org_id = r.org_id;
            end loop;
        end $$;
        alter table audit_log enable trigger user; alter table audit_heads enable trigger user;";
    sqlx::query("select set_config('t.slug', $1, false)")
        .bind(&world.acme.organization.slug)
        .execute(&mut admin)
        .await?;
    sqlx::raw_sql(rewrite).execute(&mut admin).await?;
    let text = world.text("/v1/audit/export").await?;
    assert!(text.contains("user:nobody"));
    assert_eq!(audit(&["verify", "-"], &text)?.code, Some(0), "the chain alone can't tell");
    let run = audit(&["verify", "-", "--checkpoints", &known, "--public-key", &keys], &text)?;
    assert_eq!(run.code, Some(1), "{}", run.out);
    assert!(run.err.contains("the log was rewritten") && run.err.contains("the checkpoint of "), "{}", run.err);
    Ok(())
}
