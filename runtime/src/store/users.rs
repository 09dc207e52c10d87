//! People of an organization, known from their tokens. May touch: `users`.

use uuid::Uuid;

use super::{StoreError, TenantTx};
use crate::auth::Role;

impl TenantTx {
    /// The user's id; the row is made at their first token and follows the token's email and role.
    pub async fn upsert_user(&mut self, subject: &str, email: Option<&str>, role: Role) -> Result<Uuid, StoreError> {
        // Users change no row of `users` themselves, not even their own: the platform does it for them.
        self.widen().await?;
        let id = sqlx::query_scalar(
            "insert into users (org_id, id, subject, email, role) values ($1, $2, $3, $4, $5)
             on conflict (org_id, subject) do update set email = excluded.email, role = excluded.role
             returning id",
        )
        .bind(self.organization_id)
        .bind(Uuid::now_v7())
        .bind(subject)
        .bind(email)
        .bind(role.as_str())
        .fetch_one(&mut *self.tx)
        .await?;
        self.end_widened().await?;
        Ok(id)
    }
}
