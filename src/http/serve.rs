//! Serving the API on a listener until it is told to stop. Knows nothing of what is served.

use std::{future::IntoFuture as _, time::Duration};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Api, router};

/// How long answers in flight may take once the server stops. Streams and sessions never end by themselves: clients go to another
/// server, or come back to this one.
const DRAIN_WITHIN: Duration = Duration::from_secs(3);

/// Serves the API until `stop`, then for a moment more what is in flight.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, api: Api, stop: CancellationToken) -> std::io::Result<()> {
    let stopping = stop.clone();
    let served = axum::serve(listener, router(api)).with_graceful_shutdown(async move { stopping.cancelled().await });
    tokio::select! {
        result = served.into_future() => result,
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN_WITHIN).await } => Ok(()),
    }
}
