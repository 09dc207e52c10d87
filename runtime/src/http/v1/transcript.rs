//! A session's conversation without its pod. A part of it at a time is read and sent, each in a transaction of its own: a
//! transcript may be longer than what one reader may take of the memory of all. May touch: `store`.

use std::sync::Arc;

use async_stream::try_stream;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::Stream;
use http::header::CONTENT_TYPE;
use uuid::Uuid;

use super::agent::MessageView;
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::Problem;
use crate::http::held::COPIES;
use crate::http::internal::MAX_MESSAGE_BYTES;
use crate::resilience::memory::Room;
use crate::store::StoreError;
use crate::store::messages::{Message, PAGE_BYTES};
use crate::store::sessions::Session;

#[derive(Debug, thiserror::Error)]
pub(super) enum Interrupted {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a message is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the server is shutting down")]
    Leaving,
}

/// The messages of a session, oldest first. The first part is read at once: what is wrong by then is the answer.
pub(super) async fn pages(
    app: &App,
    caller: &Caller,
    session: &Session,
) -> Result<impl Stream<Item = Result<Vec<Message>, Interrupted>> + Send + use<>, Problem> {
    let longest = PAGE_BYTES.saturating_add(i64::try_from(MAX_MESSAGE_BYTES).unwrap_or(i64::MAX));
    let bytes = usize::try_from(session.transcript_bytes.min(longest)).unwrap_or(0);
    let room = app.held.room(caller.organization.id, COPIES, bytes)?;
    let first = read(app, caller, session.id, 0).await?;
    Ok(from(Arc::clone(app), caller.clone(), session.id, first, room))
}

fn from(
    app: App,
    caller: Caller,
    session: Uuid,
    mut page: Vec<Message>,
    room: Room,
) -> impl Stream<Item = Result<Vec<Message>, Interrupted>> + Send {
    try_stream! {
        let _room = room;
        while let Some(last) = page.last().map(|message| message.id) {
            yield std::mem::take(&mut page);
            if app.closing.is_cancelled() {
                Err(Interrupted::Leaving)?;
            }
            page = read(&app, &caller, session, last.saturating_add(1)).await?;
        }
    }
}

async fn read(app: &App, caller: &Caller, session: Uuid, from: i32) -> Result<Vec<Message>, StoreError> {
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let page = tx.messages(session, from).await?;
    tx.commit().await?;
    Ok(page)
}

/// As the pod itself would answer. An error ends the body without its end, so that no client takes a part for the whole.
pub(super) fn as_json(pages: impl Stream<Item = Result<Vec<Message>, Interrupted>> + Send + 'static) -> Response {
    ([(CONTENT_TYPE, "application/json")], Body::from_stream(json(pages))).into_response()
}

fn json(
    pages: impl Stream<Item = Result<Vec<Message>, Interrupted>>,
) -> impl Stream<Item = Result<Bytes, Interrupted>> {
    try_stream! {
        let mut text = "{\"messages\":[".to_owned();
        let mut separator = "";
        for await page in pages {
            for message in page? {
                text.push_str(separator);
                text.push_str(&serde_json::to_string(&MessageView::from(message))?);
                separator = ",";
            }
            yield Bytes::from(std::mem::take(&mut text));
        }
        yield Bytes::from(text + "]}");
    }
}
