//! Transcripts, which outlive their pods. May touch: `messages`, and their size in `sessions`.

use sqlx::Row;
use uuid::Uuid;

use super::sessions::{Phase, Session};
use super::{StoreError, TenantTx};

/// A smaller change of a transcript's size is not recorded.
const RECORD_STEP: u64 = 1024;

/// One message of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Counts from 0 within the session.
    pub id: i32,
    /// `agent` or `user`.
    pub role: String,
    /// Text.
    pub content: String,
    /// RFC 3339.
    pub time: String,
}

/// Messages `$2` to `$3` of the session `$1`.
pub const TRANSCRIPT: &str =
    "select id, role, content, to_char(time at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as time
     from messages where session_id = $1 and id between $2 and $3 order by id";

/// Text that is read at a time; one message more may be longer.
pub const PAGE_BYTES: i64 = 1024 * 1024;
const PAGE_MESSAGES: i64 = 1000;

impl TenantTx {
    /// The next messages of a session from this id on, oldest first. None are left when there are none: a transcript can
    /// be longer than what one request may take of the memory of all.
    pub async fn messages(&mut self, session: Uuid, from: i32) -> Result<Vec<Message>, StoreError> {
        let lengths: Vec<(i32, i32)> = sqlx::query_as(
            "select id, octet_length(content) from messages where session_id = $1 and id >= $2 order by id limit $3",
        )
        .bind(session)
        .bind(from)
        .bind(PAGE_MESSAGES)
        .fetch_all(&mut *self.tx)
        .await?;
        let mut bytes = 0;
        let page = lengths.iter().take_while(|(_, length)| {
            let fits = bytes < PAGE_BYTES;
            bytes += i64::from(*length);
            fits
        });
        let Some((last, _)) = page.last() else { return Ok(Vec::new()) };
        let rows = sqlx::query(TRANSCRIPT).bind(session).bind(from).bind(last).fetch_all(&mut *self.tx).await?;
        let message = |row: &sqlx::postgres::PgRow| {
            Ok::<_, sqlx::Error>(Message {
                id: row.try_get("id")?,
                role: row.try_get("role")?,
                content: row.try_get("content")?,
                time: row.try_get("time")?,
            })
        };
        Ok(rows.iter().map(message).collect::<Result<_, _>>()?)
    }

    /// Text of a session's messages, recorded with the session so that the organization's sum costs little.
    pub async fn record_transcript_bytes(&mut self, session: &Session) -> Result<i64, StoreError> {
        let bytes: i64 =
            sqlx::query_scalar("select coalesce(sum(octet_length(content)), 0) from messages where session_id = $1")
                .bind(session.id)
                .fetch_one(&mut *self.tx)
                .await?;
        // A change of the row says that somebody works on the session, which decides about a takeover while it starts;
        // and a few characters more are not worth a write.
        if bytes.abs_diff(session.transcript_bytes) >= RECORD_STEP && session.phase != Phase::Starting {
            sqlx::query("update sessions set transcript_bytes = $2 where id = $1")
                .bind(session.id)
                .bind(bytes)
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(bytes)
    }

    /// Text of all messages of the organization, as recorded.
    pub async fn transcript_bytes(&mut self) -> Result<i64, StoreError> {
        let sum = "select coalesce(sum(transcript_bytes), 0)::bigint from sessions";
        Ok(sqlx::query_scalar(sum).fetch_one(&mut *self.tx).await?)
    }

    /// Adds what is new and replaces what has changed.
    pub async fn upsert_messages(&mut self, session: Uuid, messages: &[Message]) -> Result<(), StoreError> {
        let ids: Vec<i32> = messages.iter().map(|message| message.id).collect();
        let roles: Vec<&str> = messages.iter().map(|message| message.role.as_str()).collect();
        let contents: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
        let times: Vec<&str> = messages.iter().map(|message| message.time.as_str()).collect();
        sqlx::query(
            "insert into messages (org_id, session_id, id, role, content, time)
             select $1, $2, new.id, new.role, new.content, new.time::timestamptz
             from unnest($3::int[], $4::text[], $5::text[], $6::text[]) as new(id, role, content, time)
             on conflict (org_id, session_id, id)
             do update set role = excluded.role, content = excluded.content, time = excluded.time
             where (messages.role, messages.content) is distinct from (excluded.role, excluded.content)",
        )
        .bind(self.organization_id)
        .bind(session)
        .bind(ids)
        .bind(roles)
        .bind(contents)
        .bind(times)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }
}
