//! Fuzz target of what providers, MCP servers and browsers send: metadata, answers, challenges, states. See
//! `agentapi_fuzz`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agentapi_fuzz::Fuzz;
use url::Url;

use super::discovery::{Protected, Server, covers, metadata_urls, parameter};
use super::exchange::code;
use super::state::State;

#[test]
fn oauth_answers() {
    const TOKENS: &[&[u8]] = &[
        br#""issuer":"https://id.example.com""#,
        br#""authorization_endpoint":"https://id.example.com/auth""#,
        br#""token_endpoint":"https://id.example.com/token""#,
        br#""code_challenge_methods_supported":["S256"]"#,
        br#""resource":"https://mcp.example.com""#,
        br#""authorization_servers":["https://id.example.com"]"#,
        br#"Bearer resource_metadata="https://mcp.example.com/x""#,
        b"{tenantid}",
        b"acme.",
        b"{",
        b"}",
        b"\"",
        b",",
        b"/../",
        b"%2e",
        b"#",
        b"?",
        b"@",
    ];
    let mcp: Url = "https://mcp.example.com/mcp".parse().unwrap();
    Fuzz::new("oauth_answers").tokens(TOKENS).max_bytes(2048).run(|input| {
        let text = String::from_utf8_lossy(input);
        let mut behaviour = 1;
        if let Ok(server) = serde_json::from_slice::<Server>(input) {
            behaviour |= 2 | u64::from(server.is_issuer("https://id.example.com")) << 2;
            behaviour |= u64::from(server.takes("client_secret_basic")) << 3;
        }
        if let Ok(protected) = serde_json::from_slice::<Protected>(input) {
            let covers = covers(&protected.resource, &mcp);
            assert!(!covers || protected.resource.parse::<Url>().unwrap().host_str() == mcp.host_str());
            behaviour |= 16 | u64::from(covers) << 5;
        }
        if let Some(value) = parameter(&text, "resource_metadata") {
            assert!(text.contains(&value));
            behaviour |= 64;
        }
        if let Ok(url) = text.parse::<Url>().map_err(drop)
            && !url.cannot_be_a_base()
        {
            for found in metadata_urls(&url) {
                assert_eq!((found.scheme(), found.host(), found.port()), (url.scheme(), url.host(), url.port()));
                assert!(found.path().contains("/.well-known/"), "{found}");
            }
            behaviour |= 128;
        }
        if let Some(state) = State::parse(&text) {
            let (name, value) = state.cookie(true);
            assert!(
                format!("{name}={value}").bytes().all(|byte| byte.is_ascii_graphic() && !b";,\"\\".contains(&byte))
            );
            behaviour |= 256;
        }
        let code = code(&text);
        assert!(code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_graphic()), "{code:?}");
        behaviour | u64::from(code.is_empty()) << 9
    });
}
