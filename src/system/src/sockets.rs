//! What becomes of a connection before HTTP is spoken on it: its options, and a bounded look at which version of HTTP it begins with.
//! Knows nothing of what is served.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

/// How long a connection is silent before the kernel asks whether the other side is still there, and how often it asks.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// The pause before looking again at a beginning that says nothing yet: peeking does not wait for more.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// What a connection of HTTP/2 with prior knowledge begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Without delay, and given up when the other side is gone or has taken nothing for `stuck`.
pub fn prepare(stream: &TcpStream, stuck: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY))?;
    socket.set_tcp_user_timeout(Some(stuck))
}

/// A version of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2, whose preface is there whole.
    Http2,
}

/// Looks at the first bytes without taking them, for at most `limit`. hyper-util's own look has no bound, and neither has its wait for
/// the rest of a preface.
///
/// # Errors
/// `TimedOut` where too little was said in time, `UnexpectedEof` where nothing comes any more, and the socket's own.
pub async fn speaks(stream: &TcpStream, limit: Duration) -> io::Result<Speaks> {
    let deadline = Instant::now() + limit;
    let mut first = [0; PREFACE.len()];
    loop {
        let seen = timeout_at(deadline, stream.peek(&mut first)).await??;
        match &first[..seen] {
            b"" => return Err(io::ErrorKind::UnexpectedEof.into()),
            whole if whole == PREFACE => return Ok(Speaks::Http2),
            begun if !PREFACE.starts_with(begun) => return Ok(Speaks::Http1),
            _ if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            _ => {}
        }
        sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    /// What is made of a client that says this and then waits.
    async fn seen(said: &[u8], limit: Duration) -> io::Result<Speaks> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(said).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        prepare(&stream, Duration::from_secs(1)).unwrap();
        speaks(&stream, limit).await
    }

    #[tokio::test]
    async fn http_version_is_told_from_the_first_bytes() {
        let patient = Duration::from_secs(20);
        assert_eq!(seen(b"GET / HTTP/1.1\r\n", patient).await.unwrap(), Speaks::Http1);
        assert_eq!(seen(b"PUT / HTTP/1.1\r\n", patient).await.unwrap(), Speaks::Http1);
        assert_eq!(seen(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore", patient).await.unwrap(), Speaks::Http2);
    }

    #[tokio::test]
    async fn silent_client_is_given_up_after_the_limit() {
        for said in [b"".as_slice(), b"P", b"PRI", b"PRI * HTTP/2.0\r\n"] {
            let refused = seen(said, Duration::from_millis(50)).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::TimedOut, "{said:?}");
        }
    }
}
