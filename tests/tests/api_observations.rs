//! What the runtime writes about MCP servers, as the operator reads it: by its own login, once for each news, and as
//! the conditions of the resource.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::Duration;

use agentapi_operator::observations::{self, News, Tool};
use agentapi_operator::tenancy;
use agentapi_tests::pg::Database;
use anyhow::Result;
use secrecy::SecretString;
use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

/// An organization with a connection of which something was observed.
const SEED: &str = "
    insert into organizations (id, slug, display_name, issuer, audience, org_claim_value)
    values ('00000000-0000-0000-0000-0000000000a1', 'acme', 'Acme', 'https://login.example.com', 'agentapi', 'acme');
    insert into mcp_connections (org_id, id, name, k8s_namespace, origin, transport, generation)
    values ('00000000-0000-0000-0000-0000000000a1', '00000000-0000-0000-0000-0000000000c1', 'docs', 'team', 'crd', 'sse', 3),
           ('00000000-0000-0000-0000-0000000000a1', '00000000-0000-0000-0000-0000000000c2', 'other', 'team', 'crd', 'sse', 1);
    insert into mcp_observations (org_id, connection_id, generation, state, message, tools, pinned, quarantined, breaker,
                                  auth_state, protocol, observed_at)
    values ('00000000-0000-0000-0000-0000000000a1', '00000000-0000-0000-0000-0000000000c1', 3, 'Ready', null,
            '[{\"name\": \"search\", \"digest\": \"aa\"}]', '[{\"name\": \"search\", \"digest\": \"ab\"}]', true, 'half-open',
            'Expiring', '2025-06-18', now() - interval '90 seconds')";

const STALE: Duration = Duration::from_secs(300);

#[tokio::test]
async fn the_operator_reads_what_was_observed_and_hears_of_news_once() -> Result<()> {
    let db = Database::create().await?;
    let mut admin = PgConnection::connect(&db.admin_url()).await?;
    admin.execute(SEED).await?;
    let pool = tenancy::pool(&SecretString::from(db.operator_url()))?;
    let (acme, docs, other) = (Uuid::from_u128(0xa1), Uuid::from_u128(0xc1), Uuid::from_u128(0xc2));

    let seen = observations::of(&pool, acme, docs).await?.unwrap();
    let tool = |digest: &str| vec![Tool { name: "search".into(), digest: digest.into() }];
    assert_eq!((seen.generation, seen.state.as_str(), seen.message), (3, "Ready", None));
    assert_eq!((seen.tools, seen.pinned, seen.quarantined), (tool("aa"), Some(tool("ab")), true));
    let words = (seen.breaker.as_str(), seen.authorization.as_deref(), seen.protocol.as_deref());
    assert_eq!(words, ("half-open", Some("Expiring"), Some("2025-06-18")));
    assert!(seen.age >= Duration::from_secs(90) && seen.age < Duration::from_secs(150), "{:?}", seen.age);
    assert_eq!(observations::of(&pool, acme, other).await?, None);
    assert_eq!(observations::of(&pool, Uuid::from_u128(0xa2), docs).await?, None);

    let mut news = News::default();
    assert_eq!(news.since_last_time(&pool, STALE).await?, [docs.to_string()]);
    assert!(news.since_last_time(&pool, STALE).await?.is_empty());
    admin.execute("update mcp_observations set observed_at = now()").await?;
    assert!(news.since_last_time(&pool, STALE).await?.is_empty(), "another look that found the same is no news");
    admin.execute("update mcp_observations set observed_at = now(), breaker = 'open'").await?;
    assert_eq!(news.since_last_time(&pool, STALE).await?, [docs.to_string()]);
    admin
        .execute(
            "insert into mcp_observations (org_id, connection_id, generation, state)
             values ('00000000-0000-0000-0000-0000000000a1', '00000000-0000-0000-0000-0000000000c2', 1, 'Unreachable')",
        )
        .await?;
    assert_eq!(news.since_last_time(&pool, STALE).await?, [other.to_string()]);
    let later = "update mcp_observations set observed_at = now() + interval '301 seconds' where breaker = 'open'";
    admin.execute(later).await?;
    assert_eq!(news.since_last_time(&pool, STALE).await?, [docs.to_string()], "the status says that nothing is known");
    // Another leader knows nothing and looks at all of them.
    assert_eq!(News::default().since_last_time(&pool, STALE).await?.len(), 2);
    Ok(())
}
