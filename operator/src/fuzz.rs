//! Fuzz targets of what people write into custom resources. See `agentapi_fuzz`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agentapi_crds::{McpConnection, Organization, PromptPolicy, Workspace};
use agentapi_fuzz::Fuzz;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::controllers::{mcp_connection, organization, prompt_policy, workspace};
use crate::tenancy::names::TenantRoles;

const WORDS: &[&[u8]] = &[
    b"null",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    br#""$(HOME)""#,
    br#""$$(HOME)""#,
    br#""\u0000""#,
    br#""\ud800""#,
    br#""../..""#,
    br#""http://169.254.169.254/""#,
    br#""organizationRef":{"name":"acme"}"#,
    br#""egress":[{"cidr":"0.0.0.0/0"}]"#,
    br#""env":[{"name":"A","value":"$$(B)"}]"#,
    br#""command":["sh","-c","$(x)"]"#,
    br#""transport":{"sse":{"url":"http://[::1"}}"#,
    br#""template":"{{ x }}""#,
    br#""scope":"Global""#,
    br#""quota":{"cpu":"1e999"}"#,
    br#""warmPool":-1"#,
];

/// The object with this spec, if it has the shape that the API server checks before anything else.
fn object<K: DeserializeOwned>(kind: &str, spec: &[u8]) -> Option<K> {
    let spec: Value = serde_json::from_slice(spec).ok()?;
    let meta =
        json!({"name": "web", "namespace": "team-a", "uid": "2b8e4a5c-1111-4222-8333-444455556666", "generation": 1});
    serde_json::from_value(json!({"apiVersion": "agentapi.dev/v1alpha1", "kind": kind, "metadata": meta, "spec": spec}))
        .ok()
}

/// Names that become roles of Postgres.
#[test]
fn organization_name() {
    Fuzz::new("organization_name").tokens(&[b"-ro", b"-", b"_", b"\"", b"'", b";", b"--"]).max_bytes(128).run(
        |input| {
            let text = String::from_utf8_lossy(input);
            let Ok(roles) = TenantRoles::of(&text) else { return 0 };
            for role in [&roles.tenant, &roles.read] {
                let quoted = role.to_string();
                let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap();
                assert!(inner.starts_with("org_") && inner.len() <= 63);
                assert!(inner.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{quoted}");
            }
            1 + text.len() as u64
        },
    );
}

/// Specs of all kinds: validated and, where they are accepted, built.
#[test]
fn specs() {
    Fuzz::new("specs").tokens(WORDS).run(|input| {
        let mut behaviour = 0_u64;
        if let Some(found) = object::<Workspace>("Workspace", input) {
            let wanted = found.spec.agent.env.clone();
            let built = workspace::build::build(
                &found,
                &workspace::tests::accepted(),
                &workspace::tests::surroundings(),
                &workspace::tests::egress(),
            );
            let pod = built.template.template.unwrap().spec.unwrap();
            // What a pod gets is what was written, whatever Kubernetes would expand.
            for (variable, wanted) in pod.containers[0].env.iter().flatten().rev().zip(wanted.iter().rev()) {
                assert_eq!(expanded(variable.value.as_deref().unwrap()), wanted.value, "{}", wanted.name);
            }
            let namespaces = [&built.template.metadata.namespace, &built.egress.metadata.namespace];
            assert!(namespaces.iter().all(|it| it.as_deref() == Some("agentapi-acme")), "{namespaces:?}");
            assert_eq!(pod.automount_service_account_token, Some(false));
            behaviour |= 1 | (wanted.len() as u64 % 8) << 8;
        }
        if let Some(found) = object::<McpConnection>("McpConnection", input) {
            let verdict = mcp_connection::validate::validate(&found, Ok(workspace::tests::tenancy()), None, []);
            behaviour |= 2 | u64::from(verdict.is_ok()) << 2;
        }
        if let Some(found) = object::<PromptPolicy>("PromptPolicy", input) {
            let tenancy = Some(Ok(workspace::tests::tenancy()));
            let verdict = prompt_policy::validate::validate(&found, tenancy, None, "agentapi-system", []);
            let good = matches!(verdict, prompt_policy::validate::Verdict::Good(_));
            behaviour |= 8 | u64::from(good) << 4;
        }
        if let Some(found) = object::<Organization>("Organization", input) {
            behaviour |= 32 | u64::from(organization::validate::validate(&found).is_ok()) << 6;
        }
        behaviour
    });
}

/// What the kubelet makes of a value when no variable is known: `$$` is `$`, and `$(NAME)` of an unknown name stays, which
/// is the mistake that must not be possible, so it is marked.
fn expanded(value: &str) -> String {
    let (mut out, mut rest) = (String::new(), value);
    while let Some(place) = rest.find('$') {
        out.push_str(&rest[..place]);
        rest = &rest[place + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if rest.starts_with('(') && rest.contains(')') {
            out.push_str("<expanded>");
        } else {
            out.push('$');
        }
    }
    out + rest
}
