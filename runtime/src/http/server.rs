//! A listener with what a server on the open network needs: deadlines for request heads and for connections at rest,
//! the peer's address for the audit log, and a shutdown that lets running requests finish but not for ever.
//! May touch: sockets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::head_deadline::{Busy, HeadDeadline, HoldingBody};
use super::linger;

/// A request's head must be complete within this time after its first byte.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// More than this in a request's head is refused (431).
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// When a server ends, in two steps.
#[derive(Clone, Debug)]
pub struct Ending {
    /// Each answer from now on says that its connection is closed. A client that goes on asking on the connection that it
    /// has would else meet its end in the middle of a request: only new connections go to other replicas.
    pub leaving: CancellationToken,
    /// No new connections are taken.
    pub stop: CancellationToken,
    /// How long the open ones may take to finish then.
    pub grace: Duration,
}

/// Serves until the end. A connection without a request is closed after `idle`; let that be longer than the load
/// balancer's own timeout, so that the balancer closes first and none of its requests meets a closed connection.
pub async fn serve(listener: TcpListener, router: Router, idle: Duration, ending: Ending) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = ending.stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                connections.spawn(connection(stream, peer, router.clone(), idle, ending.clone()));
            }
            Err(error) => {
                // Out of file descriptors, most likely: a pause lets some come back.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(ending.grace, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "closing connections that did not finish in time");
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, idle: Duration, ending: Ending) {
    let Ending { leaving, stop, .. } = ending;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let busy = Busy::default();
    let stream = HeadDeadline::new(stream, busy.clone(), HEAD_TIMEOUT);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let (held, router, leaving) = (busy.hold(), router.clone(), leaving.clone());
        async move {
            let mut response = router.oneshot(linger::patiently(request)).await?;
            if leaving.is_cancelled() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| HoldingBody::new(body, held)))
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}
