//! A connection whose request heads have a deadline from their first byte on. Between two requests it may rest for
//! much longer: clients keep connections, and one that is closed under their hands costs them an error.
//! May touch: bytes of one connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Requests of one connection that are being worked on.
#[derive(Clone, Default)]
pub(super) struct Busy(Arc<Counts>);

#[derive(Default)]
struct Counts {
    active: AtomicUsize,
    begun: AtomicUsize,
}

impl Busy {
    /// Until the value is dropped, what arrives belongs to a request whose head is complete.
    pub(super) fn hold(&self) -> Held {
        self.0.begun.fetch_add(1, Ordering::AcqRel);
        self.0.active.fetch_add(1, Ordering::AcqRel);
        Held(self.clone())
    }

    fn is_busy(&self) -> bool {
        self.0.active.load(Ordering::Acquire) > 0
    }

    /// How many heads have been complete.
    fn heads(&self) -> usize {
        self.0.begun.load(Ordering::Acquire)
    }
}

/// See [`Busy::hold`].
pub(super) struct Held(Busy);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.active.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A response's body that holds its connection busy until it is sent.
pub(super) struct HoldingBody {
    body: Body,
    _held: Held,
}

impl HoldingBody {
    pub(super) fn new(body: Body, held: Held) -> Self {
        Self { body, _held: held }
    }
}

impl HttpBody for HoldingBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The connection.
pub(super) struct HeadDeadline<S> {
    stream: S,
    busy: Busy,
    within: Duration,
    /// Runs while a head has begun and is not complete; with the number of those that were complete before.
    timer: Option<(usize, Pin<Box<Sleep>>)>,
}

impl<S> HeadDeadline<S> {
    pub(super) fn new(stream: S, busy: Busy, within: Duration) -> Self {
        Self { stream, busy, within, timer: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadDeadline<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let heads = self.busy.heads();
        self.timer = self.timer.take().filter(|(begun, _)| *begun == heads);
        let before = into.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(context, into) {
            let arrived = into.filled().len() > before;
            if arrived && self.timer.is_none() && !self.busy.is_busy() {
                self.timer = Some((heads, Box::pin(sleep_until(Instant::now() + self.within))));
            }
            return Poll::Ready(read);
        }
        let Some((_, timer)) = self.timer.as_mut() else {
            return Poll::Pending;
        };
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the request's head was not complete in time")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeadDeadline<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
