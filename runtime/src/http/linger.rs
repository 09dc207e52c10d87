//! A client that is refused while it still sends its body must get to read the refusal. When a handler drops a body
//! that has not ended, the rest is read and thrown away here, for a while; closing the connection at once would reset
//! it under the client's hands. May touch: request bodies.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::EXPECT;
use hyper::body::Incoming;

/// What is thrown away at most, and for how long.
const MOST_BYTES: usize = 16 * 1024 * 1024;
const MOST_TIME: Duration = Duration::from_secs(5);

/// The request with a body that outlives its handler.
pub(super) fn patiently(request: Request<Incoming>) -> Request<Body> {
    // Such a client waits for a word before it sends anything; there will be nothing to throw away.
    let asks_first = request.headers().contains_key(EXPECT);
    request.map(|body| {
        let body = Body::new(body);
        if asks_first || hyper::body::Body::is_end_stream(&body) {
            return body;
        }
        Body::from_stream(Lingering { rest: Some(body.into_data_stream()) })
    })
}

struct Lingering {
    /// None once it has ended.
    rest: Option<BodyDataStream>,
}

impl Stream for Lingering {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(rest) = self.rest.as_mut() else {
            return Poll::Ready(None);
        };
        let next = std::task::ready!(rest.poll_next_unpin(context));
        if !matches!(next, Some(Ok(_))) {
            self.rest = None;
        }
        Poll::Ready(next)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let (Some(mut rest), Ok(runtime)) = (self.rest.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        runtime.spawn(tokio::time::timeout(MOST_TIME, async move {
            let mut thrown = 0;
            while let Some(Ok(chunk)) = rest.next().await {
                thrown += chunk.len();
                if thrown > MOST_BYTES {
                    break;
                }
            }
        }));
    }
}
