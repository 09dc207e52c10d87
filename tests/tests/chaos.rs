//! One round of `cargo xtask chaos` on the real cluster: kill -9 of each part, during a turn and a reconcile.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used)]
use agentapi_tests::chaos::{Victim, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_acknowledged_is_lost_when_a_part_is_killed() {
    let lines = run(&Victim::all(), 1).await.unwrap();
    assert!(lines.len() >= 5, "{lines:?}");
}
