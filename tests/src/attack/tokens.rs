//! Steps of the token attacks: a call that only an admin may make, and what a refusal looks like.

use anyhow::Result;

use crate::api::Answer;
use crate::serve::Replica;

/// A call that only an admin may make, with this token.
pub async fn call(replica: &Replica, token: &str) -> Result<Answer> {
    replica.api(Some(token))?.get("/v1/audit").await
}

/// # Panics
/// When the answer is anything but the refusal of a token.
#[track_caller]
pub fn refused(answer: &Answer, why: &str) {
    assert_eq!((answer.status.as_u16(), answer.problem()), (401, "unauthorized"), "{why}: {}", answer.body);
}
