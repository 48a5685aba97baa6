//! Serves the API on a socket: bounded connections and waits, and a graceful stop that waits for answers but not for streams.
//! Knows nothing of routes.

use std::{io, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use super::{Api, router};
use swell_system::sockets::{Speaks, prepare, speaks};

/// How many connections are open at once; further ones wait to be accepted. Twice the agents per server in a fleet of 50,000.
const CONNECTIONS_MAX: usize = 32_768;
/// Interval and time-out of HTTP/2 pings.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How many requests one HTTP/2 connection may have at once.
const STREAMS_MAX: u32 = 256;
/// How long requests may take to finish when the server stops. Then streams are closed, and their clients resume at another server;
/// WebSockets end with the process.
const GRACE: Duration = Duration::from_secs(5);
/// Delay after a failed accept, such as for too many open files.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves the API over HTTP/1.1 and HTTP/2 without TLS until `stop` completes; then gives requests five seconds to finish.
pub async fn serve(listener: TcpListener, api: Api, stop: impl Future<Output = ()>) {
    let front = Arc::new(Front::new(api));
    let graceful = GracefulShutdown::new();
    let (ending, cut) = (CancellationToken::new(), CancellationToken::new());
    let capacity = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            // Never closed, so this cannot fail.
            let permit = Arc::clone(&capacity).acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, _)| (permit, stream))
        };
        let (permit, stream) = tokio::select! {
            () = &mut stop => break,
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            },
        };
        let (front, watcher, ending, cut) = (Arc::clone(&front), graceful.watcher(), ending.clone(), cut.clone());
        tokio::spawn(async move {
            if let Some(Err(error)) = cut.run_until_cancelled_owned(front.serve(stream, watcher, &ending)).await {
                tracing::debug!(error, "connection failed");
            }
            drop(permit);
        });
    }
    drop(listener);
    ending.cancel();
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::info!("closing streams that are still open");
        cut.cancel();
    }
}

/// The HTTP service and settings that all connections share.
struct Front {
    service: TowerToHyperService<axum::Router>,
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
    head_timeout: Duration,
    idle_timeout: Duration,
}

impl Front {
    fn new(api: Api) -> Self {
        let (head_timeout, idle_timeout) = (api.options.head_timeout, api.options.idle_timeout);
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(head_timeout);
        builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING_EVERY).keep_alive_timeout(PING_EVERY);
        builder.http2().max_concurrent_streams(STREAMS_MAX);
        let service = TowerToHyperService::new(router(api));
        Self { service, http1: builder.clone().http1_only(), http2: builder.http2_only(), head_timeout, idle_timeout }
    }

    async fn serve(
        &self,
        stream: TcpStream,
        graceful: Watcher,
        ending: &CancellationToken,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        prepare(&stream, self.idle_timeout)?;
        let builder = match ending.run_until_cancelled(speaks(&stream, self.head_timeout)).await.transpose()? {
            Some(Speaks::Http1) => &self.http1,
            Some(Speaks::Http2) => &self.http2,
            // The server stops before the first request.
            None => return Ok(()),
        };
        graceful.watch(builder.serve_connection_with_upgrades(TokioIo::new(stream), self.service.clone())).await
    }
}
