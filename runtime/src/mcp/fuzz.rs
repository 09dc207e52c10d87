//! Fuzz targets of what servers and agents send. See `agentapi_fuzz`.
#![allow(clippy::unwrap_used)]

use agentapi_fuzz::Fuzz;

use super::rpc::Message;
use super::sse::Parser;

/// What is read, written and read again is the same.
#[test]
fn event_streams() {
    const TOKENS: &[&[u8]] =
        &[b"data:", b"event: ", b"id: ", b"retry: ", b"\n\n", b"\r\n", b"\r", b": ", b"{}", b"\xef\xbb\xbf"];
    Fuzz::new("event_streams").tokens(TOKENS).max_bytes(2048).run(|input| {
        let Ok(read) = Parser::new(1024).feed(input) else { return 1 };
        let written: Vec<u8> = read.iter().flat_map(|event| event.encode().to_vec()).collect();
        let again = Parser::new(1 << 20).feed(&written).unwrap();
        assert_eq!(again, read, "{:?}", String::from_utf8_lossy(&written));
        2 + read.len() as u64
    });
}

/// One message of JSON-RPC.
#[test]
fn mcp_messages() {
    const TOKENS: &[&[u8]] = &[
        b"{\"jsonrpc\":\"2.0\"",
        b"\"id\":1",
        b"\"method\":\"tools/call\"",
        b"\"params\":{}",
        b"\"result\":{}",
        b"\"error\":{}",
        b"null",
        b",",
        b"}",
        b"[",
    ];
    Fuzz::new("mcp_messages").tokens(TOKENS).max_bytes(2048).run(|input| match Message::parse(input) {
        Ok(Message::Request { .. }) => 1,
        Ok(Message::Notification { .. }) => 2,
        Ok(Message::Response { outcome, .. }) => 3 + u64::from(outcome.is_ok()),
        Err(error) => 10 + error.to_string().len() as u64,
    });
}
