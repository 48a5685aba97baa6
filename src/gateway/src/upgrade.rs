//! Tunnels: connections whose sides agreed on another protocol than HTTP, such as WebSocket. Knows nothing of that protocol.

use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

use super::endpoint::now_ms;

/// Time for both sides to hand over their connection after the instance has agreed.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one side may stall once the other has ended: it only has its last data to send.
const HALF_CLOSED_IDLE_LIMIT: Duration = Duration::from_secs(10);

/// Passes bytes both ways until both sides have ended, or nothing moved for `idle_limit`. `_guard` is dropped at the end.
pub async fn tunnel<T>(client: OnUpgrade, instance: OnUpgrade, idle_limit: Duration, _guard: T) {
    let both = futures::future::try_join(client, instance);
    let (client, instance) = match tokio::time::timeout(HANDOVER_TIMEOUT, both).await {
        Ok(Ok(both)) => both,
        Ok(Err(error)) => return tracing::debug!(%error, "tunnel failed to begin"),
        Err(_) => return tracing::debug!("tunnel failed to begin in time"),
    };
    let moved_ms = AtomicU64::new(now_ms());
    let half_closed = Notify::new();
    let mut client = Watched { io: TokioIo::new(client), moved_ms: &moved_ms, half_closed: &half_closed };
    let mut instance = TokioIo::new(instance);
    tokio::select! {
        ended = tokio::io::copy_bidirectional(&mut client, &mut instance) => match ended {
            Ok((from_client, from_instance)) => tracing::debug!(from_client, from_instance, "tunnel ended"),
            Err(error) => tracing::debug!(%error, "tunnel broke off"),
        },
        () = idle_for(&moved_ms, idle_limit) => tracing::debug!("tunnel closed, idle for too long"),
        () = async {
            half_closed.notified().await;
            idle_for(&moved_ms, HALF_CLOSED_IDLE_LIMIT.min(idle_limit)).await;
        } => tracing::debug!("tunnel closed, one side ended and the other stalled"),
    }
}

async fn idle_for(moved_ms: &AtomicU64, limit: Duration) {
    loop {
        let still = Duration::from_millis(now_ms().saturating_sub(moved_ms.load(Relaxed)));
        let Some(left) = limit.checked_sub(still).filter(|left| !left.is_zero()) else { return };
        tokio::time::sleep(left).await;
    }
}

/// The client's side. Every byte of a tunnel passes it, so watching one side is enough.
struct Watched<'a, T> {
    io: T,
    moved_ms: &'a AtomicU64,
    half_closed: &'a Notify,
}

impl<T> Watched<'_, T> {
    fn moved<R>(&self, result: &Poll<R>) {
        if result.is_ready() {
            self.moved_ms.store(now_ms(), Relaxed);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<'_, T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        self.moved(&result);
        if result.is_ready() && buf.filled().len() == before {
            self.half_closed.notify_one();
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<'_, T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.moved(&result);
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Asked for when the instance has ended.
        self.half_closed.notify_one();
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
