//! Server-sent events: `/events` and `/internal/screen`.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::Stream;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::{App, requests::pty_problem};
use crate::session::{events::Body, host::Host, pty::PtyError, transport::Transport};

/// A comment keeps the connection alive through proxies.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Screens per second are limited by this pause.
const SCREEN_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn events(State(app): State<App>, headers: HeaderMap) -> Response {
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    stream(event_stream(app, last))
}

pub(super) async fn screen(State(app): State<App>) -> Response {
    if app.host.config.transport == Transport::Acp {
        return pty_problem(&PtyError::NoTerminal).into_response();
    }
    stream(screen_stream(app))
}

fn stream(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A snapshot or what was missed, then everything that happens. Ids mark places to come back to; inside a
/// snapshot there is no such place, so only its last event has the id of the sequence.
fn event_stream(app: App, last: Option<String>) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    async_stream::stream! {
        let mut last = last;
        loop {
            let (snapshot, mut subscription) = app.host.subscribe(last.as_deref());
            if let Some(missed) = subscription.missed.take() {
                for event in missed {
                    yield Ok(sse(&event.body, &app.host.hub.id(event.sequence)));
                }
            } else {
                let end = snapshot.len().saturating_sub(1);
                let id = app.host.hub.id(subscription.sequence);
                for (index, body) in snapshot.iter().enumerate() {
                    let id = if index == end { id.clone() } else { format!("{id}-{index}") };
                    yield Ok(sse(body, &id));
                }
            }
            loop {
                tokio::select! {
                    () = app.closing.cancelled() => return,
                    event = subscription.live.recv() => match event {
                        Ok(event) => yield Ok(sse(&event.body, &app.host.hub.id(event.sequence))),
                        // Too slow: what is now replaces what was missed.
                        Err(RecvError::Lagged(_)) => break,
                        Err(RecvError::Closed) => return,
                    },
                }
            }
            last = None;
        }
    }
}

fn sse(body: &Body, id: &str) -> Event {
    let event = Event::default().event(body.name()).id(id);
    // Serialising these types cannot fail; an empty event would only be skipped by clients.
    event.json_data(body).unwrap_or_default()
}

fn screen_stream(app: App) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    async_stream::stream! {
        let mut frames = app.host.frames.subscribe();
        loop {
            let text = screen_text(&app.host);
            frames.mark_unchanged();
            yield Ok(Event::default().event("screen").json_data(json!({ "screen": text })).unwrap_or_default());
            loop {
                tokio::select! {
                    () = app.closing.cancelled() => return,
                    changed = frames.changed() => if changed.is_err() { return },
                }
                if screen_text(&app.host) != text {
                    break;
                }
            }
            tokio::time::sleep(SCREEN_PAUSE).await;
        }
    }
}

fn screen_text(host: &Arc<Host>) -> String {
    host.frames.borrow().screen_text()
}
