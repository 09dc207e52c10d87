//! People of an organization, known from their tokens. May touch: `users`, the audit log.

use serde_json::json;
use sqlx::Row;
use uuid::Uuid;

use super::{StoreError, TenantTx};
use crate::audit::{Entry, Origin, action};
use crate::auth::Role;

impl TenantTx {
    /// The user's id; the row is made at their first token and follows the token's email and role. What changes is
    /// recorded; most tokens change nothing.
    pub async fn upsert_user(
        &mut self,
        subject: &str,
        email: Option<&str>,
        role: Role,
        origin: &Origin,
    ) -> Result<Uuid, StoreError> {
        // Users change no row of `users` themselves, not even their own: the platform does it for them.
        self.widen().await?;
        let known = sqlx::query("select id, email, role from users where subject = $1")
            .bind(subject)
            .fetch_optional(&mut *self.tx)
            .await?;
        let known: Option<(Uuid, Option<String>, String)> = known
            .map(|row| Ok::<_, sqlx::Error>((row.try_get("id")?, row.try_get("email")?, row.try_get("role")?)))
            .transpose()?;
        let id = match known {
            Some((id, known_email, known_role)) if known_email.as_deref() == email && known_role == role.as_str() => id,
            known => self.write_user(subject, email, role, origin, known.map(|(_, _, role)| role)).await?,
        };
        self.end_widened().await?;
        Ok(id)
    }

    async fn write_user(
        &mut self,
        subject: &str,
        email: Option<&str>,
        role: Role,
        origin: &Origin,
        previous_role: Option<String>,
    ) -> Result<Uuid, StoreError> {
        let written = sqlx::query(
            "insert into users as u (org_id, id, subject, email, role) values ($1, $2, $3, $4, $5)
             on conflict (org_id, subject) do update set email = excluded.email, role = excluded.role
             where (u.email, u.role) is distinct from (excluded.email, excluded.role)
             returning id, (xmax = 0) as created",
        )
        .bind(self.organization_id)
        .bind(Uuid::now_v7())
        .bind(subject)
        .bind(email)
        .bind(role.as_str())
        .fetch_optional(&mut *self.tx)
        .await?;
        let Some(written) = written else {
            // Another request of the same user was faster, and has recorded it.
            return Ok(sqlx::query_scalar("select id from users where subject = $1")
                .bind(subject)
                .fetch_one(&mut *self.tx)
                .await?);
        };
        let (id, created): (Uuid, bool) = (written.try_get("id")?, written.try_get("created")?);
        let mut detail = json!({ "id": id, "role": role.as_str() });
        if let Some(previous) = previous_role.filter(|_| !created) {
            detail["previousRole"] = previous.into();
        }
        self.audit(&Entry {
            origin,
            action: if created { action::USER_CREATE } else { action::USER_UPDATE },
            target_kind: "user",
            target_id: Some(subject),
            detail,
        })
        .await?;
        Ok(id)
    }
}
