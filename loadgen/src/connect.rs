//! Connections by the tens of thousands: descriptors, source addresses and small buffers. Knows nothing of what is said over them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self,
        client::IntoClientRequest as _,
        http::{HeaderValue, header::AUTHORIZATION},
        protocol::WebSocketConfig,
    },
};

use crate::Error;

/// Time for each step of connecting. A server that admits tens of thousands at once makes some wait.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);

/// Connections from one source address to one server: below the 28,232 ephemeral ports that Linux has by default.
const CONNECTIONS_PER_ADDRESS: u32 = 20_000;

/// Descriptors that a process needs besides its connections.
const OTHER_FILES: u64 = 256;

/// Buffer of a connection's frames in bytes; larger frames grow it.
const BUFFER_BYTES: usize = 4096;

/// Lets this process have `connections` of them open at once.
///
/// # Errors
/// When the hard limit is lower.
pub fn allow(connections: u32) -> Result<(), Error> {
    let wanted = u64::from(connections) + OTHER_FILES;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(Error::Limit)?;
    if soft >= wanted {
        return Ok(());
    }
    if hard >= wanted {
        return setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).map_err(Error::Limit);
    }
    // Root may raise the hard limit too.
    setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).map_err(|_| Error::OpenFiles { wanted, hard })
}

/// The loopback address from which connection `number` comes; other servers than loopback ones are reached as the system likes.
fn source(number: u32, server: SocketAddr) -> Option<IpAddr> {
    let offset = number / CONNECTIONS_PER_ADDRESS;
    (server.ip().is_loopback() && server.is_ipv4() && offset > 0)
        .then(|| IpAddr::V4(Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + offset)))
}

async fn tcp(server: SocketAddr, number: u32) -> std::io::Result<TcpStream> {
    let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source(number, server) {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(server).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Opens a TCP connection, the generator's `number`-th.
///
/// # Errors
/// When the server does not accept it in time.
pub async fn open_tcp(server: SocketAddr, number: u32) -> Result<TcpStream, Error> {
    let timed_out = |_| Error::TimedOut { doing: format!("connecting to {server}"), limit: CONNECT_WITHIN };
    let connected = timeout(CONNECT_WITHIN, tcp(server, number)).await.map_err(timed_out)?;
    connected.map_err(|source| Error::Connect { server, source })
}

/// Opens a WebSocket to `path`, whose messages have at most `message_bytes_max`.
///
/// # Errors
/// When the server does not accept it in time, or not with this token.
pub async fn open_websocket(
    server: SocketAddr,
    number: u32,
    path: &str,
    token: &str,
    message_bytes_max: usize,
) -> Result<WebSocketStream<TcpStream>, Error> {
    let stream = open_tcp(server, number).await?;
    let broken = |source: tungstenite::Error| Error::WebSocket { server, source: Box::new(source) };
    let mut request = format!("ws://{server}{path}").into_client_request().map_err(broken)?;
    let bearer = HeaderValue::try_from(format!("Bearer {token}"));
    request.headers_mut().insert(AUTHORIZATION, bearer.map_err(|error| Error::Request(error.to_string()))?);
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(message_bytes_max));
    let timed_out = |_| Error::TimedOut { doing: format!("opening a session with {server}"), limit: CONNECT_WITHIN };
    let opened = timeout(CONNECT_WITHIN, client_async_with_config(request, stream, Some(config))).await.map_err(timed_out)?;
    opened.map(|(socket, _)| socket).map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_address_changes_before_its_ports_run_out() {
        let server: SocketAddr = "127.0.0.1:7400".parse().unwrap();
        assert_eq!(source(19_999, server), None);
        assert_eq!(source(20_000, server), Some("127.0.0.2".parse().unwrap()));
        assert_eq!(source(50_000, server), Some("127.0.0.3".parse().unwrap()));
        assert_eq!(source(50_000, "10.0.0.1:7400".parse().unwrap()), None);
    }
}
