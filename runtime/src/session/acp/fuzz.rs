//! Fuzz target of what an agent writes to its output. See `agentapi_fuzz`.

use agentapi_fuzz::Fuzz;

use super::{
    reply::Reply,
    rpc::{Incoming, Peer},
};

/// Lines of JSON-RPC, and what becomes of their updates.
#[test]
fn acp() {
    const TOKENS: &[&[u8]] = &[
        br#"{"jsonrpc":"2.0","method":"session/update","params":{"update":"#,
        br#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
        br#""sessionUpdate":"agent_message_chunk""#,
        br#""sessionUpdate":"tool_call""#,
        br#""sessionUpdate":"plan""#,
        br#""content":{"type":"text","text":"a"}"#,
        br#""content":[{"type":"content","content":{"type":"text","text":"a\nb"}}]"#,
        br#""content":[{"type":"diff","path":"p"}]"#,
        br#""toolCallId":"t""#,
        br#""rawOutput":"o""#,
        br#""status":"in_progress""#,
        br#""entries":[{"content":"c"}]"#,
        b"}}\n",
        b",",
        b"\n",
        b"null",
    ];
    Fuzz::new("acp").tokens(TOKENS).run(|input| {
        let (peer, _queue) = Peer::new();
        let mut reply = Reply::default();
        let mut behaviour = 0;
        for line in input.split(|byte| *byte == b'\n') {
            behaviour |= match peer.line(line) {
                Ok(Some(Incoming::Notification { params, .. })) => 1 + u64::from(reply.update(&params["update"])),
                Ok(Some(Incoming::Request { params, .. })) => {
                    reply.tool(&params);
                    4
                }
                Ok(None) => 8,
                Err(_) => 16,
            };
        }
        let text = reply.render();
        assert!(text.len() <= 1 << 20, "{} bytes", text.len());
        behaviour | u64::from(text.len().checked_ilog2().unwrap_or_default()) << 5
    });
}
