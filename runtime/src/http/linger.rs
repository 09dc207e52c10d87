//! Request bodies of clients that are slow or that send in vain. One that trickles in is cut off, or a few bytes a
//! minute would hold a connection here and one to a pod. And a client that is refused while it still sends must get to
//! read the refusal: when a handler drops a body that has not ended, the rest is read and thrown away here, for a
//! while; closing the connection at once would reset it under the client's hands. May touch: request bodies.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::EXPECT;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

/// What is thrown away at most, and for how long.
const MOST_BYTES: usize = 16 * 1024 * 1024;
const MOST_TIME: Duration = Duration::from_secs(5);
/// A body is waited for this long, and longer by what has arrived of it.
const PATIENCE: Duration = Duration::from_secs(10);
const LEAST_BYTES_PER_SECOND: u32 = 4096;

/// The body came too slowly.
#[derive(Debug, thiserror::Error)]
#[error("the body arrives too slowly")]
pub(super) struct TooSlow;

/// Whether this is why a body broke.
pub(super) fn is_too_slow(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<TooSlow>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The request with a body that outlives its handler.
pub(super) fn patiently(request: Request<Incoming>) -> Request<Body> {
    // Such a client waits for a word before it sends anything; there will be nothing to throw away.
    let asks_first = request.headers().contains_key(EXPECT);
    request.map(|body| {
        let body = Body::new(body);
        if asks_first || hyper::body::Body::is_end_stream(&body) {
            return body;
        }
        Body::from_stream(Lingering { rest: Some(body.into_data_stream()), pace: Pace::new(PATIENCE) })
    })
}

struct Lingering {
    /// None once it has ended.
    rest: Option<BodyDataStream>,
    pace: Pace,
}

/// How long a client has been waited for, and how long it may be. Only waiting counts: a handler or a pod that takes
/// its time is not the client's fault.
struct Pace {
    waited: Duration,
    allowed: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Pace {
    fn new(patience: Duration) -> Self {
        Self { waited: Duration::ZERO, allowed: patience, waiting: None }
    }

    fn arrived(&mut self, bytes: usize) {
        if let Some((since, _)) = self.waiting.take() {
            self.waited += since.elapsed();
        }
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.allowed += Duration::from_secs(1) * bytes / LEAST_BYTES_PER_SECOND;
    }

    /// Ready: the client has used up its time.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let left = self.allowed.saturating_sub(self.waited);
        let (_, timer) = self.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
        timer.as_mut().poll(context)
    }
}

impl Stream for Lingering {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(rest) = self.rest.as_mut() else {
            return Poll::Ready(None);
        };
        let Poll::Ready(next) = rest.poll_next_unpin(context) else {
            ready!(self.pace.poll_over(context));
            self.rest = None;
            return Poll::Ready(Some(Err(axum::Error::new(TooSlow))));
        };
        match &next {
            Some(Ok(chunk)) => self.pace.arrived(chunk.len()),
            _ => self.rest = None,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(300);

    fn body(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Lingering {
        let rest = Body::from_stream(chunks.map(Ok::<_, std::convert::Infallible>)).into_data_stream();
        Lingering { rest: Some(rest), pace: Pace::new(PATIENCE) }
    }

    fn every(pause: Duration, bytes: usize, times: u64) -> impl Stream<Item = Bytes> {
        futures::stream::iter(0..times).then(move |_| async move {
            sleep(pause).await;
            Bytes::from(vec![b'x'; bytes])
        })
    }

    #[tokio::test]
    async fn a_trickle_is_cut_off_and_a_slow_line_is_not() {
        let mut trickle = body(every(Duration::from_millis(20), 1, 500));
        let began = Instant::now();
        let broke = loop {
            match trickle.next().await.unwrap() {
                Ok(_) => assert!(began.elapsed() < Duration::from_secs(5)),
                Err(error) => break error,
            }
        };
        assert!(is_too_slow(&broke), "{broke}");
        assert!(began.elapsed() >= PATIENCE);
        assert!(trickle.next().await.is_none());
        let slow = body(every(Duration::from_millis(100), 2000, 10));
        assert_eq!(slow.filter(|chunk| std::future::ready(chunk.is_ok())).count().await, 10);
    }

    #[tokio::test]
    async fn a_slow_reader_is_not_the_clients_fault() {
        let mut body = body(every(Duration::from_millis(1), 1, 10));
        for _ in 0..10 {
            sleep(Duration::from_millis(60)).await;
            assert!(body.next().await.unwrap().is_ok());
        }
    }
}
