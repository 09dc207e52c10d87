//! Steps of the token attacks: a platform to attack, a call that only an admin may make, and what a refusal looks like.

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::api::Answer;
use crate::serve::{Platform, Replica, Tenant};

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

/// Base64 as in a token.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Claims of an admin of the tenant.
pub fn admin(platform: &Platform, tenant: &Tenant) -> Value {
    platform.claims(&tenant.organization.slug, "mallory", "admin")
}
