//! An organization leaves a real Postgres while the process that does it is killed after each step and within each
//! step: nothing is done twice, nothing is left out, and the receipt says what happened.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_crds::common::DeletionPolicy;
use agentapi_operator::{
    signing::{self, Signer, Statement},
    tenancy::{
        self,
        offboarding::{Leaving, Outcome, Step, published, step, unfinished},
    },
};
use agentapi_tests::{
    cluster::eventually,
    pg::{Database, Organization, Server, ServerOptions, become_tenant},
};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use std::{
    os::unix::process::ExitStatusExt,
    process::{Child, Command},
    time::Duration,
};

const STEP: &str = env!("CARGO_BIN_EXE_operator-step");
const SIGKILL: i32 = 9;
/// What `operator-step` signs with.
const PEM: &str = include_str!("../src/bin/operator-step.pem");

struct Fixture {
    database: Database,
    pool: PgPool,
    signer: Signer,
}

impl Fixture {
    /// Roles belong to the server: a server of its own.
    async fn new() -> Self {
        let database = Database::create_on(Server::start(ServerOptions::default()).await.unwrap()).await.unwrap();
        let pool = tenancy::pool(&SecretString::from(database.operator_url())).unwrap();
        Self { database, pool, signer: Signer::from_pem(PEM.as_bytes()).unwrap() }
    }

    async fn admin(&self, statement: &str) {
        self.database.admin(statement).await.unwrap();
    }

    async fn number(&self, query: &str) -> i64 {
        self.database.scalar(query).await.unwrap()
    }

    async fn text(&self, query: &str) -> String {
        self.database.scalar(query).await.unwrap()
    }

    /// Somebody with a session that has ended, what was said in it, and a token.
    async fn organization(&self, slug: &str) -> Organization {
        let organization = self.database.organization(slug).await.unwrap();
        self.session(&organization, true).await.unwrap();
        self.admin(&format!(
            "insert into mcp_connections (org_id, id, name, origin, transport) values ('{0}', '{0}', 'c', 'api', 'sse');
             insert into mcp_oauth_tokens (org_id, id, connection_id, access_ciphertext, key_id, key_version)
             values ('{0}', '{0}', '{0}', decode(repeat('00', 32), 'hex'), '{0}', 1)",
            organization.id
        ))
        .await;
        organization
    }

    /// A new session with one message, as the runtime makes it.
    async fn session(&self, organization: &Organization, ended: bool) -> sqlx::Result<()> {
        let mut runtime = PgConnection::connect(&self.database.runtime_url()).await?;
        let mut tx = runtime.begin().await?;
        become_tenant(&mut tx, organization, Some(organization.alice.id), "user").await.unwrap();
        let phase = if ended { "'Ended', now()" } else { "'Running', null" };
        tx.execute(AssertSqlSafe(format!(
            "insert into sessions (org_id, id, workspace_id, user_id, agent_type, phase, ended_at)
             values ('{}', gen_random_uuid(), '{}', '{}', 'claude', {phase})",
            organization.id, organization.workspace, organization.alice.id
        )))
        .await?;
        tx.execute(
            "insert into messages (org_id, session_id, id, role, content)
             select org_id, id, 0, 'agent', 'hello' from sessions s
             where not exists (select from messages m where m.session_id = s.id)",
        )
        .await?;
        tx.commit().await
    }

    async fn step(&self, leaving: &Leaving, now: Timestamp) -> Outcome {
        step(&self.pool, leaving, &self.signer, now, async || None).await.unwrap()
    }

    /// A process that does so many steps and is killed.
    fn process(&self, leaving: &Leaving, steps: u32) -> Child {
        let policy = if leaving.policy == DeletionPolicy::Delete { "Delete" } else { "Retain" };
        Command::new(STEP)
            .args(["offboard", &steps.to_string(), &leaving.id.to_string(), &leaving.slug, policy])
            .env_clear()
            .env("DATABASE_URL", self.database.operator_url())
            .env("PATH", "/usr/bin:/bin")
            .spawn()
            .unwrap()
    }

    /// Lets a process begin its next step, and kills it before that is committed.
    async fn kill_within_a_step(&self, leaving: &Leaving) {
        self.admin("alter table offboardings enable trigger slow").await;
        let mut child = self.process(leaving, 0);
        eventually("the process is within a step", Duration::from_secs(60), async || {
            let asleep = self.number("select count(*) from pg_stat_activity where wait_event = 'PgSleep'").await;
            Ok(if asleep == 1 { Ok(()) } else { Err("not yet".into()) })
        })
        .await
        .unwrap();
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL));
        self.admin("select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'").await;
        self.admin("alter table offboardings disable trigger slow").await;
    }
}

fn leaving(organization: &Organization, policy: DeletionPolicy) -> Leaving {
    let now = Timestamp::now();
    Leaving { id: organization.id, slug: organization.slug.clone(), policy, requested_at: now, drain_until: now }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_leaves_although_the_operator_is_killed_at_each_step() {
    let fixture = Fixture::new().await;
    fixture
        .admin(
            "create function slow() returns trigger language plpgsql as
             'begin perform pg_sleep(600); return new; end';
             create trigger slow before insert or update on offboardings for each row execute function slow();
             alter table offboardings disable trigger slow",
        )
        .await;
    for (slug, policy) in [("kept", DeletionPolicy::Retain), ("gone", DeletionPolicy::Delete)] {
        let organization = fixture.organization(slug).await;
        let leaving = leaving(&organization, policy);
        let steps = [Step::Refuse, Step::Drain, Step::Namespace, Step::Revoke, Step::Keys, Step::Rows, Step::Receipt];
        for (n, expected) in steps.into_iter().enumerate() {
            let recorded = format!(
                "select coalesce((select (select count(*) from jsonb_object_keys(steps)) + (receipt is not null)::int
                 from offboardings where org_id = '{}'), 0)",
                leaving.id
            );
            assert_eq!(fixture.number(&recorded).await, i64::try_from(n).unwrap());
            fixture.kill_within_a_step(&leaving).await;
            assert_eq!(fixture.number(&recorded).await, i64::try_from(n).unwrap(), "{slug}: half of {expected:?}");
            assert_eq!(fixture.process(&leaving, 1).wait().unwrap().signal(), Some(SIGKILL), "{slug} {expected:?}");
            assert_eq!(fixture.number(&recorded).await, i64::try_from(n + 1).unwrap(), "{slug}: after {expected:?}");
            assert_eq!(unfinished(&fixture.pool).await.unwrap().len(), 1, "{slug}: a sweep finds it");
        }
        let Outcome::Receipt(receipt) = fixture.step(&leaving, Timestamp::now()).await else { panic!("no receipt") };
        published(&fixture.pool, leaving.id).await.unwrap();
        assert_eq!(fixture.step(&leaving, Timestamp::now()).await, Outcome::Over);
        assert_eq!(unfinished(&fixture.pool).await.unwrap().len(), 0);

        let claims = signing::verify(Statement::Receipt, &receipt, fixture.signer.public_key()).unwrap();
        check_receipt(&fixture, &leaving, &claims).await;
        check_what_is_left(&fixture, &leaving).await;
    }
}

async fn check_receipt(fixture: &Fixture, leaving: &Leaving, claims: &Value) {
    assert_eq!(claims["organizationId"], leaving.id.to_string());
    let (word, other) =
        if leaving.policy == DeletionPolicy::Delete { ("deleted", "retained") } else { ("retained", "deleted") };
    let rows = &claims["steps"]["rows"][word];
    for (table, count) in [("users", 3), ("sessions", 1), ("messages", 1), ("mcp_oauth_tokens", 1), ("workspaces", 1)] {
        assert_eq!(rows[table], count, "{table}: {claims}");
    }
    assert_eq!(rows["mcp_connections"], 1, "{claims}");
    assert!(claims["steps"]["rows"][other].is_null());
    assert_eq!(claims["steps"]["keys"]["versions"], serde_json::json!([1]));
    let roles = &claims["steps"]["revoke"]["roles"];
    assert_eq!(roles[0], format!("{{{}}}", leaving.id));
    assert_eq!(roles[1], format!("org_{}", leaving.slug));
    // The receipt names the end of the chain, and the chain has each step once.
    let id = leaving.id;
    let end =
        fixture.text(&format!("select seq || ' ' || encode(hash, 'hex') from audit_heads where org_id = '{id}'")).await;
    let told = format!("{} {}", claims["audit"]["seq"], claims["audit"]["hash"].as_str().unwrap());
    assert_eq!(end, told);
    let actions = fixture
        .text(&format!(
            "select string_agg(replace(action, 'organization.', ''), ' ' order by seq) from audit_log
             where org_id = '{id}' and action ~ '^organization.(offboard|delete)'"
        ))
        .await;
    assert_eq!(
        actions,
        "offboard.refuse offboard.drain offboard.namespace offboard.revoke offboard.keys offboard.rows delete"
    );
}

async fn check_what_is_left(fixture: &Fixture, leaving: &Leaving) {
    let (slug, id) = (&leaving.slug, leaving.id);
    assert_eq!(fixture.number(&format!("select count(*) from pg_roles where rolname ~ '^org_{slug}'")).await, 0);
    let by_id = format!("select count(*) from pg_roles where rolname = '{{{}}}'", leaving.id);
    assert_eq!(fixture.number(&by_id).await, 0);
    assert_eq!(fixture.number(&format!("select count(*) from tenant_keys where org_id = '{id}'")).await, 0);
    let left = i64::from(leaving.policy == DeletionPolicy::Retain);
    for table in ["sessions", "messages", "mcp_oauth_tokens"] {
        let query = format!("select count(*) from {table} where org_id = '{id}'");
        assert_eq!(fixture.number(&query).await, left, "{table}");
    }
    let gone = format!("select count(*) from organizations where id = '{id}' and deleted_at is null");
    assert_eq!(fixture.number(&gone).await, 0);
    // A receipt is final.
    let mut operator = PgConnection::connect(&fixture.database.operator_url()).await.unwrap();
    for statement in ["update offboardings set receipt = 'x'", "delete from offboardings"] {
        let refused = operator.execute(statement).await.unwrap_err();
        assert!(refused.to_string().contains("final") || refused.to_string().contains("denied"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_have_their_grace_period_and_new_ones_are_refused() {
    let fixture = Fixture::new().await;
    let organization = fixture.organization("acme").await;
    fixture.session(&organization, false).await.unwrap();
    let now = Timestamp::now();
    let at = |seconds| now + SignedDuration::from_secs(seconds);
    let leaving = Leaving { drain_until: at(30), ..leaving(&organization, DeletionPolicy::Retain) };
    assert_eq!(fixture.step(&leaving, now).await, Outcome::Did(Step::Refuse));
    let refused = fixture.session(&organization, false).await.unwrap_err();
    assert!(refused.to_string().contains("takes no new sessions"), "{refused}");
    let waits = |outcome: Outcome| match outcome {
        Outcome::Waits(what) => what,
        other => panic!("{other:?}"),
    };
    assert!(waits(fixture.step(&leaving, at(1)).await).contains("1 sessions may go on until"));
    assert!(waits(fixture.step(&leaving, at(31)).await).contains("hand in their transcripts"));
    // It does not end: cut off, and the receipt will say so.
    assert_eq!(fixture.step(&leaving, at(91)).await, Outcome::Did(Step::Drain));
    let cut = "select (steps->'drain'->>'sessionsCutOff')::bigint from offboardings";
    assert_eq!(fixture.number(cut).await, 1);
    // What is left of the namespace is waited for.
    let outcome = step(&fixture.pool, &leaving, &fixture.signer, at(91), async || Some("a pod".into())).await.unwrap();
    assert_eq!(outcome, Outcome::Waits("a pod".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_of_the_same_name_keeps_its_roles_and_who_never_was_leaves_nothing() {
    let fixture = Fixture::new().await;
    let predecessor = fixture.organization("acme").await;
    let leaving = leaving(&predecessor, DeletionPolicy::Delete);
    assert_eq!(fixture.step(&leaving, Timestamp::now()).await, Outcome::Did(Step::Refuse));
    fixture.admin("update organizations set deleted_at = now()").await;
    let successor = fixture.database.organization("acme").await.unwrap();
    while !matches!(fixture.step(&leaving, Timestamp::now()).await, Outcome::Receipt(_)) {}
    assert_eq!(fixture.number("select count(*) from pg_roles where rolname ~ '^org_acme'").await, 2);
    for (id, left) in [(predecessor.id, 0), (successor.id, 1)] {
        let by_id = format!("select count(*) from pg_roles where rolname = '{{{id}}}'");
        assert_eq!(fixture.number(&by_id).await, left);
    }
    let owner = fixture.text("select org_id::text from tenant_roles where role_name = 'org_acme'").await;
    assert_eq!(owner, successor.id.to_string());

    // One whose finalizer somebody removed by hand, and that was made again at once: the sweep finds it.
    let third = fixture.database.organization("acme").await.unwrap();
    let found = unfinished(&fixture.pool).await.unwrap();
    assert!(found.iter().any(|it| it.id == successor.id), "{found:?}");
    let second = found.into_iter().find(|it| it.id == successor.id).unwrap();
    while !matches!(fixture.step(&second, Timestamp::now()).await, Outcome::Receipt(_)) {}
    let keys = format!("select count(*) from tenant_keys where org_id = '{}'", second.id);
    assert_eq!(fixture.number(&keys).await, 0);
    let owner = fixture.text("select org_id::text from tenant_roles where role_name = 'org_acme'").await;
    assert_eq!(owner, third.id.to_string());

    let never = Leaving { id: uuid::Uuid::new_v4(), slug: "never".into(), ..leaving };
    assert_eq!(fixture.step(&never, Timestamp::now()).await, Outcome::Over);
    assert_eq!(fixture.number("select count(*) from offboardings").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receipt_counts_every_table_that_goes_with_an_organization() {
    let fixture = Fixture::new().await;
    let organization = fixture.organization("acme").await;
    let leaving = leaving(&organization, DeletionPolicy::Retain);
    while !matches!(fixture.step(&leaving, Timestamp::now()).await, Outcome::Receipt(_)) {}
    // Roles and keys have steps of their own.
    let missing = fixture
        .text(
            "select coalesce(string_agg(distinct conrelid::regclass::text, ', '), '') from pg_constraint, offboardings
             where contype = 'f' and confrelid = 'organizations'::regclass
             and conrelid::regclass::text not in ('tenant_roles', 'tenant_keys')
             and not steps->'rows'->'retained' ? conrelid::regclass::text",
        )
        .await;
    assert_eq!(missing, "", "count them in tenancy::offboarding::rows");
}
