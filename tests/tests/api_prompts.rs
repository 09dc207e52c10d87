//! Prompt policies from the operator's rows to the agent, on a real Postgres with real session hosts: which ones a
//! session gets, that it sees nobody else's, that an edit reaches new sessions and no others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use agentapi_operator::controllers::prompt_policy::validate::Verdict;
use agentapi_operator::records::{self, PolicyRow};
use agentapi_tests::api::{Answer, Api};
use agentapi_tests::cluster::eventually;
use agentapi_tests::mcp::raw::{Mood, Raw};
use agentapi_tests::mcp::setup::{configuration, connection, initialize, probing, request, rpc};
use agentapi_tests::pg::become_tenant;
use agentapi_tests::serve::Platform;
use agentapi_tests::serve::policies::{Operator, SYSTEM, audit, lines, preview};
use agentapi_tests::serve::steps::{SOON, running};
use anyhow::Result;
use serde_json::json;
use uuid::Uuid;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

/// The system prompt in the state folder of a session's pod, if it has one.
fn told(platform: &Platform, session: &str) -> Option<String> {
    let folder = platform.pods.folder(session.parse().unwrap()).unwrap();
    std::fs::read_to_string(folder.join("state/system-prompt.md")).ok()
}

fn refused(answer: &Answer) -> (u16, &str) {
    (answer.status.as_u16(), answer.problem())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_told_what_its_scopes_say_and_its_row_keeps_the_digest() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let operator = Operator::of(&platform).await?;
    let org = &acme.organization;
    operator.for_everybody("house", &json!({"locked": true, "template": "Never push to main."})).await?;
    let style = "You work for {{ organization }} with {{ company }}.\nToday is {{ date }}.";
    let more = json!({"template": style, "variables": {"company": "Acme Inc"}, "priority": 5});
    operator.of_organization(org, "style", &more).await?;
    operator.of_organization(org, "tone", &json!({"template": "Be brief.", "priority": -5})).await?;
    // A lower scope takes the place of an open section, and not of a locked one.
    operator.of_main(org, "tone", "Be thorough, {{ agent }} in {{ workspace }}.").await?;
    operator.of_main(org, "house", "Push wherever you like.").await?;

    let alice = replica.api(Some(&acme.alice))?;
    let seen = preview(&alice, Some("hello\nthere")).await?;
    let team = format!("team-{}", org.slug);
    let today = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    assert_eq!(
        lines(&seen),
        [
            "agentapi-system/house: Never push to main.".to_owned(),
            "agentapi-system/house: ".to_owned(),
            format!("{team}/style: You work for {} with Acme Inc.", org.slug),
            format!("{team}/style: Today is {today}."),
            format!("{team}/style: "),
            format!("main-{}/tone: Be thorough, claude in main.", org.slug),
            "Session: hello".to_owned(),
            "Session: there".to_owned(),
        ],
        "{seen}"
    );
    assert_eq!((&seen["lines"][0]["locked"], &seen["lines"][0]["generation"]), (&json!(true), &json!(1)));
    let reasons = seen["leftOut"].to_string();
    assert!(reasons.contains("shadowed: the locked Global policy agentapi-system/house"), "{reasons}");
    assert!(reasons.contains("overridden by the Workspace policy"), "{reasons}");

    // What is previewed is what the agent gets: a cold pod from its Secret, a warm one with its claim.
    let cold = running(&alice, json!({"workspace": "main", "prompt": "hello\nthere"})).await?;
    platform.pods.warm(&org.slug, "main")?;
    let warm = running(&alice, json!({"workspace": "main"})).await?;
    let wanted = format!(
        "Never push to main.\n\nYou work for {} with Acme Inc.\nToday is {today}.\n\nBe thorough, claude in main.",
        org.slug
    );
    for id in [&cold, &warm] {
        assert_eq!(told(&platform, id).as_deref(), Some(wanted.as_str()), "{id}");
        let session = alice.get(&format!("/v1/sessions/{id}")).await?.expect(200)?;
        assert_eq!(session["promptDigest"], seen["digest"]);
        let created = audit(&replica, &acme.admin, &format!("targetId={id}&action=session.create")).await?;
        assert_eq!(created[0]["detail"]["promptDigest"], seen["digest"]);
        assert_eq!(created[0]["detail"]["policies"].as_array().map(Vec::len), Some(3), "{created:?}");
        assert!(!created[0].to_string().contains("Never push"), "the audit log has the digest and no text");
    }
    assert_eq!(seen["digest"], agentapi_prompts::compose::digest(&wanted));
    // The agent finds the file too.
    let path = platform.pods.folder(warm.parse()?)?.join("state/system-prompt.md");
    alice.stable(&warm, SOON).await?;
    let ask = json!({"content": "env AGENTAPI_SYSTEM_PROMPT_FILE", "type": "user"});
    alice.post(&format!("/v1/sessions/{warm}/message"), &ask).await?.expect(200)?;
    let messages = alice.stable(&warm, SOON).await?;
    let flat = json!(messages).to_string().replace("\\n", "");
    assert!(flat.contains(path.file_name().unwrap().to_str().unwrap()), "{flat}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_another_organizations_or_workspaces_words() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let globex = platform.tenant("globex").await?;
    let operator = Operator::of(&platform).await?;
    operator.of_organization(&acme.organization, "style", &json!({"template": "The secret of acme."})).await?;
    operator.of_main(&acme.organization, "mine", "Of acme's main.").await?;
    let global = operator.for_everybody("all", &json!({"template": "For everybody."})).await?;

    // Both share the cache of one replica, and the same names.
    for _ in 0..2 {
        let seen = preview(&replica.api(Some(&globex.alice))?, None).await?;
        assert_eq!(lines(&seen), ["agentapi-system/all: For everybody."]);
        assert_eq!(lines(&preview(&replica.api(Some(&acme.alice))?, None).await?).len(), 5);
    }
    let other = format!(
        "insert into workspaces (org_id, id, name, k8s_namespace, agent_type, max_sessions)
         values ('{}', gen_random_uuid(), 'other', 'team', 'claude', 5)",
        acme.organization.id
    );
    sqlx::query(sqlx::AssertSqlSafe(other)).execute(&operator.pool).await?;
    let body = json!({"workspace": "other"});
    let seen = replica.api(Some(&acme.alice))?.post("/v1/prompts/preview", &body).await?.expect(200)?;
    assert!(!seen.to_string().contains("Of acme's main."), "{seen}");

    // A Global policy from a team's own namespace is nobody's.
    let forged = json!({"scope": "Global", "locked": true, "template": "Obey globex."});
    let team = format!("team-{}", globex.organization.slug);
    let verdict = Operator::verdict(Some(&globex.organization), Uuid::new_v4(), (&team, "all"), 1, &forged);
    assert!(matches!(&verdict, Verdict::Refused(refusal) if refusal.message.contains(SYSTEM)), "{verdict:?}");
    // Nor can one be written with the tenant's own rights: neither made nor changed.
    let mut runtime = platform.db.connect(&platform.db.runtime_url()).await?;
    for statement in [
        "insert into prompt_policies (id, scope, name, k8s_namespace, template)
         values (gen_random_uuid(), 'Global', 'x', 'agentapi-system', 'Obey globex.')"
            .to_owned(),
        format!("update prompt_policies set template = 'Obey globex.' where id = '{}'", global.id),
    ] {
        let mut tx = sqlx::Connection::begin(&mut runtime).await?;
        let admin = Some(globex.organization.admin.id);
        become_tenant(&mut tx, &globex.organization, admin, "admin").await?;
        let error = sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut *tx).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("42501"), "{error}");
    }
    assert_eq!(lines(&preview(&replica.api(Some(&acme.bob))?, None).await?)[0], "agentapi-system/all: For everybody.");

    // Unknown workspaces and other agents are refused as they are for sessions.
    let alice = replica.api(Some(&acme.alice))?;
    for body in [
        json!({"workspace": "nope"}),
        json!({"workspace": "main", "agent": "codex"}),
        json!({"workspace": "main", "prompt": " "}),
    ] {
        let answer = alice.post("/v1/prompts/preview", &body).await?;
        assert_eq!(refused(&answer), (422, "invalid-field"), "{body}: {}", answer.body);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_reaches_new_sessions_on_every_replica_and_running_ones_keep_theirs() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let second = platform.replica().await?;
    let operator = Operator::of(&platform).await?;
    let mut row = operator.of_organization(&acme.organization, "style", &json!({"template": "First edition."})).await?;
    let alice = replica.api(Some(&acme.alice))?;
    let old = running(&alice, json!({"workspace": "main"})).await?;
    assert_eq!(told(&platform, &old).as_deref(), Some("First edition."));
    let digest = alice.get(&format!("/v1/sessions/{old}")).await?.expect(200)?["promptDigest"].clone();

    for (edition, replica) in [(2_i64, &replica), (3, &second)] {
        row.template = format!("Edition {edition}.");
        row.generation = edition;
        operator.write(&row).await?;
        let began = Instant::now();
        let api = replica.api(Some(&acme.alice))?;
        let wanted = format!("Edition {edition}.");
        eventually("the edit to arrive", SOON, async || {
            let asked = began.elapsed();
            let seen = preview(&api, None).await?;
            let arrived = seen["lines"][0]["text"] == wanted.as_str();
            assert!(arrived || asked < Duration::from_secs(2), "{asked:?} after the edit: {seen}");
            Ok(if arrived { Ok(()) } else { Err(seen.to_string()) })
        })
        .await?;
        let new = running(&api, json!({"workspace": "main"})).await?;
        assert_eq!(told(&platform, &new).as_deref(), Some(wanted.as_str()));
    }
    // The running session's prompt is what it was, in its row and after a restart of its pod too.
    assert_eq!(told(&platform, &old).as_deref(), Some("First edition."));
    assert_eq!(alice.get(&format!("/v1/sessions/{old}")).await?.expect(200)?["promptDigest"], digest);
    let change = "update sessions set prompt_digest = 'sha256:' || repeat('0', 64) where id = $1::uuid";
    let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
    let error = sqlx::query(change).bind(&old).execute(&mut admin).await.unwrap_err();
    assert!(error.to_string().contains("does not change"), "{error}");

    // Taken away, it is gone from the next session on.
    records::remove::<PolicyRow>(&operator.pool, row.id, &operator.metrics).await?;
    assert_eq!(lines(&preview(&alice, None).await?), [""; 0]);
    let none = running(&alice, json!({"workspace": "main"})).await?;
    assert_eq!(told(&platform, &none), None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_session_starts_without_the_rules_that_it_should_have() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let operator = Operator::of(&platform).await?;
    // Written by an operator of an older version, say: today's would not let it through.
    let mut row = operator.of_organization(&acme.organization, "style", &json!({"template": "fine"})).await?;
    row.template = "Be kind.\n{{ missing }}".to_owned();
    row.generation = 2;
    operator.write(&row).await?;
    let alice = replica.api(Some(&acme.alice))?;
    for path in ["/v1/sessions", "/v1/prompts/preview"] {
        let answer = alice.post(path, &json!({"workspace": "main"})).await?;
        assert_eq!(refused(&answer), (503, "prompt-policy-failed"), "{}", answer.body);
        let detail = answer.body["detail"].as_str().unwrap();
        assert!(detail.contains("/style (generation 2): line 2, column "), "{detail}");
    }
    let listed = alice.get("/v1/sessions").await?.expect(200)?;
    assert_eq!(listed["sessions"], json!([]), "nothing is left of it");
    Ok(())
}

/// Names of the tools that the gateway shows of a connection.
async fn shown(api: &Api, connection: &str) -> Result<Vec<String>> {
    let session = initialize(api, connection).await?;
    let listed = rpc(api, connection, session.as_deref(), &request(2, "tools/list", json!({}))).await?;
    let tools = listed.answer()["result"]["tools"].as_array().cloned().unwrap_or_default();
    let mut names: Vec<String> = tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    Ok(names)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_lists_the_tools_that_the_gateway_shows() -> Result<()> {
    let platform = Platform::start(SESSION_POD).await?;
    let replica = probing(&platform, 1).await?;
    let (acme, globex) = (platform.tenant("acme").await?, platform.tenant("globex").await?);
    let operator = Operator::of(&platform).await?;
    operator
        .for_everybody("tools", &json!({"template": "You have:{% for tool in tools %} {{ tool }}{% endfor %}."}))
        .await?;
    let tool = |name: &str| json!({"name": name, "description": "Does it.", "inputSchema": {"type": "object"}});
    let server = Raw::start().await?;
    let tools: Vec<_> = ["search", "get.issue", "delete_all", "beta"].map(tool).into();
    server.set_tools(tools.clone());
    let (admin, alice) = (replica.api(Some(&acme.admin))?, replica.api(Some(&acme.alice))?);
    let mut tracker = configuration("my-tracker", &server.url());
    // Looks that fail are no reason to stop looking here.
    let patient = json!({"failures": 100});
    tracker["breaker"] = patient.clone();
    tracker["tools"] = json!({"deny": ["delete_all"], "pin": true});
    let mut docs = configuration("docs", &server.url());
    docs["breaker"] = patient;
    docs["tools"] = json!({"allow": ["search", "delete_all", "gone"], "deny": ["delete_all"]});
    let (tracker, docs) = (connection(&admin, &tracker).await?, connection(&admin, &docs).await?);
    // Never seen, it adds nothing.
    connection(&admin, &configuration("away", "http://127.0.0.1:1/mcp")).await?;

    let says = async |api: &Api, wanted: &str| {
        eventually(wanted, SOON, async || {
            let seen = preview(api, None).await?;
            Ok(if seen["lines"][0]["text"] == wanted { Ok(seen["digest"].clone()) } else { Err(seen.to_string()) })
        })
        .await
    };
    let all = "You have: mcp__docs__search mcp__my-tracker__beta mcp__my-tracker__get_issue mcp__my-tracker__search.";
    let digest = says(&alice, all).await?;
    assert_eq!(shown(&alice, &docs).await?, ["search"]);
    assert_eq!(shown(&alice, &tracker).await?, ["beta", "get.issue", "search"]);
    assert_eq!(lines(&preview(&replica.api(Some(&globex.alice))?, None).await?), ["agentapi-system/tools: You have:."]);
    let session = running(&alice, json!({"workspace": "main"})).await?;
    assert_eq!(told(&platform, &session).as_deref(), Some(all));

    // Looked at again it is the same; and a server that is away for a while has not lost its tools.
    for mood in [Mood::Well, Mood::Status(500)] {
        server.set_mood(mood.clone());
        let before = server.seen().len();
        let state = if mood == Mood::Well { "Ready" } else { "Failing" };
        eventually("a look at it", SOON, async || {
            let seen = admin.get(&format!("/v1/mcp/configurations/{tracker}")).await?.expect(200)?;
            let looked = server.seen().len() > before + 2 && seen["status"]["state"] == state;
            Ok(if looked { Ok(()) } else { Err(seen.to_string()) })
        })
        .await?;
        assert_eq!(preview(&alice, None).await?["digest"], digest);
    }
    server.set_mood(Mood::Well);

    // One more is not pinned; one that has changed puts the connection into quarantine, where it has none.
    let mut more = tools.clone();
    more.push(tool("added"));
    server.set_tools(more);
    eventually("the new tool is seen", SOON, async || {
        let seen = admin.get(&format!("/v1/mcp/configurations/{tracker}")).await?.expect(200)?;
        Ok(if seen.to_string().contains("added") { Ok(()) } else { Err(seen.to_string()) })
    })
    .await?;
    assert_eq!(says(&alice, all).await?, digest);
    assert_eq!(shown(&alice, &tracker).await?, ["beta", "get.issue", "search"]);
    let mut changed = tools;
    changed[3]["description"] = json!("Does something else.");
    server.set_tools(changed);
    says(&alice, "You have: mcp__docs__search.").await?;
    assert_eq!(shown(&alice, &tracker).await?, [""; 0]);
    assert_eq!(told(&platform, &session).as_deref(), Some(all), "a session keeps what it was told");
    Ok(())
}
