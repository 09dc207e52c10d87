//! Rows of resources that went away without the operator, policies beyond the quota, and two of one name, on the real cluster.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_tests::{
    cluster::eventually,
    tenant::{SETTLE, Tenant},
};
use serde_json::Value;

fn policy(tenant: &Tenant, name: &str) -> String {
    format!(
        "apiVersion: agentapi.dev/v1alpha1\nkind: PromptPolicy\nmetadata: {{name: {name}, namespace: {}}}\nspec:\n  \
         scope: Organization\n  organizationRef: {{name: {}}}\n  template: Be kind.\n",
        tenant.team(),
        tenant.slug
    )
}

#[tokio::test]
async fn a_row_whose_resource_is_gone_goes_too_and_no_other() {
    let tenant = Tenant::new("e2e-leftovers").await;
    let team = tenant.team();
    tenant.cluster.apply(&policy(&tenant, "stays")).unwrap();
    tenant.ready("promptpolicy", Some(&team), "stays").await;
    // As after `kubectl patch --type merge -p '{"metadata":{"finalizers":null}}'` and a delete that came first. The
    // last one has the name of a resource that is there, and another one's id.
    let organization = format!("(select id from organizations where slug = '{}' and deleted_at is null)", tenant.slug);
    for (table, columns, values) in [
        ("prompt_policies", "scope, template", "'Organization', 'Obey mallory.'"),
        ("mcp_connections", "origin, transport", "'crd', 'sse'"),
        ("workspaces", "agent_type, max_sessions", "'claude', 1"),
    ] {
        tenant.sql(&format!(
            "insert into {table} (id, org_id, name, k8s_namespace, {columns})
             values (gen_random_uuid(), {organization}, 'left-behind', '{team}', {values})"
        ));
    }
    tenant.sql(&format!(
        "insert into mcp_connections (id, org_id, name, origin, transport)
         values (gen_random_uuid(), {organization}, 'made-with-the-api', 'api', 'sse')"
    ));
    let names = || {
        tenant.sql(&format!(
            "select string_agg(name, ' ' order by name) from (
                 select name from prompt_policies where org_id = {organization}
                 union all select name from mcp_connections where org_id = {organization}
                 union all select name from workspaces where org_id = {organization} and deleted_at is null) all_rows"
        ))
    };
    eventually("the rows are gone", SETTLE, async || {
        let seen = names();
        Ok(if seen == "made-with-the-api stays web" { Ok(()) } else { Err(seen) })
    })
    .await
    .unwrap();
}

/// Waits until one of so many policies is in place, and the others say why they are not; its name.
async fn only_one_has_a_place(tenant: &Tenant, policies: usize) -> String {
    let team = tenant.team();
    eventually("one policy is in place", SETTLE, async || {
        let list = tenant.cluster.kubectl(&["-n", &team, "get", "promptpolicies", "-o", "json"])?;
        let list: Value = serde_json::from_str(&list)?;
        let says = |item: &Value, kind: &str, reason: &str| {
            item["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|it| it["type"] == kind && it["reason"] == reason)
        };
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let refused = items.iter().filter(|item| says(item, "Accepted", "QuotaExceeded")).count();
        let placed: Vec<_> = items.iter().filter(|item| says(item, "Ready", "Reconciled")).collect();
        let placed: Vec<_> = placed.iter().filter_map(|item| item["metadata"]["name"].as_str()).collect();
        let rows =
            tenant.sql(&format!("select string_agg(name, ' ') from prompt_policies where k8s_namespace = '{team}'"));
        let right = items.len() == policies && refused + 1 == policies && placed == [rows.as_str()];
        Ok(if right { Ok(rows) } else { Err(format!("{refused} refused, in place: {placed:?}, rows: {rows:?}")) })
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn policies_beyond_the_quota_are_not_accepted_until_there_is_room() {
    let tenant = Tenant::new("e2e-policies").await;
    let team = tenant.team();
    let quota = |policies: u32| {
        let patch = format!(r#"{{"spec":{{"quota":{{"promptPolicies":{policies}}}}}}}"#);
        tenant.cluster.kubectl(&["patch", "organization", &tenant.slug, "--type", "merge", "-p", &patch]).unwrap();
    };
    quota(1);
    // All in one second, and looked at at once: whoever was let in keeps its place, and nobody else gets one.
    let many: Vec<String> = (0..8).map(|n| policy(&tenant, &format!("rule-{n}"))).collect();
    tenant.cluster.apply(&many.join("---\n")).unwrap();
    let first = only_one_has_a_place(&tenant, many.len()).await;
    tenant.cluster.apply(&policy(&tenant, "late")).unwrap();
    tenant.says("promptpolicy", Some(&team), "late", "Accepted", "False", "QuotaExceeded").await;
    assert_eq!(only_one_has_a_place(&tenant, many.len() + 1).await, first, "who was let in keeps its place");
    tenant.cluster.kubectl(&["-n", &team, "delete", "promptpolicy", &first]).unwrap();
    assert_ne!(only_one_has_a_place(&tenant, many.len()).await, first);
    // A value that is too long does not come in at all.
    let long = format!("{}  variables: {{own: {}}}\n", policy(&tenant, "long"), "x".repeat(2049));
    let refused = tenant.cluster.apply(&long).unwrap_err().to_string();
    assert!(refused.contains("2048"), "{refused}");
}

#[tokio::test]
async fn of_two_programs_of_one_name_one_has_what_belongs_to_it() {
    let tenant = Tenant::new("e2e-twins").await;
    let (cluster, slug) = (&tenant.cluster, &tenant.slug);
    let namespaces = [tenant.team(), format!("{}-b", tenant.team())];
    let admitted =
        format!(r#"{{"spec":{{"allowedNamespaces":{{"names":["{}","{}"]}}}}}}"#, namespaces[0], namespaces[1]);
    cluster.kubectl(&["patch", "organization", slug, "--type", "merge", "-p", &admitted]).unwrap();
    cluster.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}\n", namespaces[1])).unwrap();
    let names = ["one", "two", "three"];
    let connection = |name: &str, namespace: &str| {
        format!(
            "apiVersion: agentapi.dev/v1alpha1\nkind: McpConnection\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  organizationRef: {{name: {slug}}}\n  transport:\n    \
             stdio: {{image: 'agentapi.dev/postgres:dev', command: [sleep, '600']}}\n"
        )
    };
    // All in one second, and looked at at once.
    let twins = names.iter().flat_map(|name| namespaces.iter().map(|namespace| connection(name, namespace)));
    cluster.apply(&twins.collect::<Vec<_>>().join("---\n")).unwrap();
    for name in names {
        eventually(&format!("one of two called {name} has it"), SETTLE, async || {
            let accepted = |namespace: &str| cluster.condition("mcpconnection", Some(namespace), name, "Accepted");
            let seen = [accepted(&namespaces[0])?, accepted(&namespaces[1])?];
            let yes = |it: &Option<(String, String)>| it.as_ref().is_some_and(|(status, _)| status == "True");
            let no = |it: &Option<(String, String)>| it.as_ref().is_some_and(|(_, reason)| reason == "NameConflict");
            let winner = match &seen {
                [a, b] if yes(a) && no(b) => &namespaces[0],
                [a, b] if no(a) && yes(b) => &namespaces[1],
                _ => return Ok(Err(format!("{seen:?}"))),
            };
            let object = format!("agentapi-mcp-{name}");
            for kind in ["deployment", "networkpolicy", "service"] {
                let live = tenant.get(kind, &object).unwrap_or_default();
                let owner = &live["metadata"]["labels"]["agentapi.dev/mcp-connection-namespace"];
                if owner != winner.as_str() {
                    return Ok(Err(format!("{kind} {object} of {winner} belongs to {owner}")));
                }
            }
            let ready = cluster.condition("mcpconnection", Some(winner), name, "Ready")?;
            // The program says nothing that a client understands; that it runs is what counts here.
            let runs =
                ready.as_ref().is_some_and(|(_, reason)| !["ApplyFailed", "ServerNotReady"].contains(&reason.as_str()));
            Ok(if runs { Ok(()) } else { Err(format!("{ready:?}")) })
        })
        .await
        .unwrap();
    }
    cluster.kubectl(&["delete", "namespace", &namespaces[1], "--timeout=90s"]).unwrap();
}
