//! The connection to one server, from which routes come. When it breaks, the gateway keeps routing by the last table and tries
//! another server. Knows nothing of requests.
//!
//! The protocol: a WebSocket to `/v1/gateways/session` with a bearer token; the messages are `swell_model::routing::messages`.

mod updates;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::{SinkExt, StreamExt};
use hyper::header::{self, HeaderValue};
use serde::Serialize;
use tokio::{
    net::TcpStream,
    time::{Instant, MissedTickBehavior, interval, timeout, timeout_at},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{self, Message, client::IntoClientRequest, protocol::WebSocketConfig},
};
use tokio_util::sync::CancellationToken;

use super::{config::SessionConfig, table::TableHandle};
use swell_model::{
    routing::{
        messages::{GatewayHello, GatewayId, GatewayToServer, ServedServices, ServerToGateway},
        update::UpdateError,
    },
    units::Millis,
    wire::{HEARTBEAT_EVERY, PROTOCOL_VERSION, ROUTES_BYTES_MAX, Refusal, SILENCE_MAX},
};
use updates::{Applied, Updates};

/// Time to connect, and for each message to be accepted by the network.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// The first wait before another server is tried; doubled each time.
const BACKOFF_BASE: Duration = Duration::from_millis(200);
/// The longest such wait.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// The longest time that a busy server may make a gateway wait.
const BUSY_MAX: Duration = Duration::from_secs(60);

/// Reason for the end of a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The configuration cannot be used.
    #[error("failed to open a session with {server}: {reason}; correct the gateway's `servers` or token")]
    Configured { server: String, reason: String },
    /// The connection failed or broke.
    #[error("the session with {server} broke: {source}")]
    Broken { server: String, source: Box<tungstenite::Error> },
    /// The server took too long.
    #[error("the session with {server} timed out while {action}")]
    TimedOut {
        server: String,
        /// Such as `connecting`.
        action: &'static str,
    },
    /// The server closed the session.
    #[error("{server} closed the session")]
    Closed { server: String },
    /// The server is overloaded, stops, or is behind this gateway's routes.
    #[error("{server} is busy and asks to wait for {retry_after}")]
    Busy { server: String, retry_after: Millis },
    /// The server does not accept this gateway.
    #[error("{server} refused this gateway: {reason}")]
    Refused { server: String, reason: String },
    /// A message could not be read or written.
    #[error("failed to read or write a message of {server}: {reason}; check that both run compatible versions")]
    Message { server: String, reason: String },
    /// The server sent routes that cannot be applied.
    #[error("failed to apply the routes of {server}: {source}")]
    Update { server: String, source: UpdateError },
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What the gateway says of itself.
#[derive(Debug, Clone)]
pub struct Identity {
    pub gateway: GatewayId,
    pub name: String,
    pub zone: String,
    /// Where it listens for requests.
    pub addresses: Vec<SocketAddr>,
    pub serves: ServedServices,
}

/// Keeps a session with one of the servers until `stop`, trying them in turn with growing waits.
pub async fn keep(config: SessionConfig, identity: Identity, table: TableHandle, stop: CancellationToken) {
    let mut failures: u32 = 0;
    for server in config.servers.iter().cycle() {
        let mut is_useful = false;
        let session = one_session(server, &config.token, &identity, &table, &mut is_useful);
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = session => ended,
        };
        failures = if is_useful { 0 } else { failures.saturating_add(1) };
        let error = match ended {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let wait = wait_after(&error, failures, config.servers.len() == 1);
        tracing::warn!(%server, %error, retry_in_ms = wait.as_millis() as u64, "session lost, routing by the last table");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// How long to wait before the next server is tried.
fn wait_after(error: &SessionError, failures: u32, is_only_server: bool) -> Duration {
    match error {
        SessionError::Busy { retry_after, .. } if is_only_server => {
            retry_after.as_duration().min(BUSY_MAX).mul_f64(1.0 + fastrand::f64() / 2.0)
        }
        // Nothing changes before a person changes it.
        SessionError::Refused { .. } => backoff(u32::MAX).max(BACKOFF_MAX / 2),
        _ => backoff(failures),
    }
}

/// Full jitter (Brooker, *Exponential Backoff and Jitter*, 2015), so that gateways do not reconnect all at once.
fn backoff(failures: u32) -> Duration {
    let most = BACKOFF_BASE.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
    most.mul_f64(fastrand::f64().max(0.05))
}

/// Runs a session from connecting to its end, which is always an error. `is_useful` is set when the server sent a valid message.
async fn one_session(
    server: &str,
    token: &str,
    identity: &Identity,
    table: &TableHandle,
    is_useful: &mut bool,
) -> Result<std::convert::Infallible, SessionError> {
    let mut socket = connect(server, token).await?;
    let held = Arc::clone(&table.load().source);
    let hello = GatewayHello {
        version: PROTOCOL_VERSION,
        gateway: identity.gateway.clone(),
        name: identity.name.clone(),
        zone: identity.zone.clone(),
        addresses: identity.addresses.clone(),
        serves: identity.serves.clone(),
        generation: held.generation,
        hash: held.hash(),
    };
    send(&mut socket, server, &GatewayToServer::Hello(hello)).await?;
    tracing::info!(%server, generation = %held.generation, "session opened");

    let mut updates = Updates::new(table.clone());
    let mut heartbeat = interval(HEARTBEAT_EVERY.as_duration());
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat.reset();
    let mut last_frame = Instant::now();
    loop {
        tokio::select! {
            _ = heartbeat.tick() => send(&mut socket, server, &GatewayToServer::Heartbeat).await?,
            frame = timeout_at(last_frame + SILENCE_MAX.as_duration(), socket.next()) => {
                let silent = SessionError::TimedOut { server: server.to_owned(), action: "waiting for a message" };
                let frame = frame.map_err(|_| silent)?.ok_or_else(|| SessionError::Closed { server: server.to_owned() })?;
                last_frame = Instant::now();
                match frame.map_err(|error| broken(server, error))? {
                    Message::Binary(bytes) => {
                        let message = decode(bytes.into(), server).await?;
                        *is_useful |= !matches!(message, ServerToGateway::Busy { .. } | ServerToGateway::Refused(_));
                        if let Some(answer) = take(message, &mut updates, server).await? {
                            send(&mut socket, server, &answer).await?;
                        }
                    }
                    Message::Close(_) => return Err(SessionError::Closed { server: server.to_owned() }),
                    // Pings are answered by the library when it next reads or writes.
                    _ => {}
                }
            }
        }
    }
}

async fn connect(server: &str, token: &str) -> Result<Socket, SessionError> {
    let configured = |reason: String| SessionError::Configured { server: server.to_owned(), reason };
    let url = format!("ws://{server}/v1/gateways/session");
    let mut request = url.into_client_request().map_err(|error| configured(error.to_string()))?;
    let mut bearer = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| configured("the token has characters that cannot be in a header".into()))?;
    bearer.set_sensitive(true);
    request.headers_mut().insert(header::AUTHORIZATION, bearer);
    let config = WebSocketConfig::default().max_message_size(Some(ROUTES_BYTES_MAX)).max_frame_size(Some(ROUTES_BYTES_MAX));
    match timeout(STEP_TIMEOUT, connect_async_with_config(request, Some(config), true)).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(error)) => Err(broken(server, error)),
        Err(_) => Err(SessionError::TimedOut { server: server.to_owned(), action: "connecting" }),
    }
}

fn broken(server: &str, error: tungstenite::Error) -> SessionError {
    SessionError::Broken { server: server.to_owned(), source: Box::new(error) }
}

async fn send(socket: &mut Socket, server: &str, message: &impl Serialize) -> Result<(), SessionError> {
    let frame = rmp_serde::to_vec_named(message)
        .map_err(|error| SessionError::Message { server: server.to_owned(), reason: error.to_string() })?;
    match timeout(STEP_TIMEOUT, socket.send(Message::binary(frame))).await {
        Ok(sent) => sent.map_err(|error| broken(server, error)),
        Err(_) => Err(SessionError::TimedOut { server: server.to_owned(), action: "sending" }),
    }
}

/// Decodes a message; a large one takes milliseconds, so not on a thread that forwards requests.
async fn decode(bytes: Vec<u8>, server: &str) -> Result<ServerToGateway, SessionError> {
    let failed = |reason: String| SessionError::Message { server: server.to_owned(), reason };
    let decoded = tokio::task::spawn_blocking(move || rmp_serde::from_slice(&bytes)).await;
    decoded.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
}

/// Obeys a message, and returns the answer to it.
async fn take(message: ServerToGateway, updates: &mut Updates, server: &str) -> Result<Option<GatewayToServer>, SessionError> {
    match message {
        ServerToGateway::Heartbeat => Ok(None),
        ServerToGateway::Busy { retry_after } => Err(SessionError::Busy { server: server.to_owned(), retry_after }),
        ServerToGateway::Refused(refusal) => {
            Err(SessionError::Refused { server: server.to_owned(), reason: refusal_text(&refusal) })
        }
        ServerToGateway::Routes(frame) => match updates.take(frame).await {
            Ok(Applied::Incomplete) => Ok(None),
            Ok(Applied::Complete(generation)) => Ok(Some(GatewayToServer::Routed { generation })),
            Ok(Applied::SnapshotWanted(error)) => {
                tracing::warn!(%server, %error, "update does not fit, asking for all routes");
                Ok(Some(GatewayToServer::SnapshotWanted))
            }
            Err(source) => Err(SessionError::Update { server: server.to_owned(), source }),
        },
    }
}

fn refusal_text(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Version { server } => {
            format!("it speaks version {server} of the protocol, this gateway version {PROTOCOL_VERSION}; upgrade the older one")
        }
        Refusal::Rejected { reason, .. } => reason.clone(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_a_bound_with_jitter() {
        for failures in 0..100 {
            assert!(backoff(failures) <= BACKOFF_MAX);
            assert!(backoff(failures) >= Duration::from_millis(10));
        }
        assert_ne!((0..8).map(|_| backoff(9)).collect::<Vec<_>>(), (0..8).map(|_| backoff(9)).collect::<Vec<_>>());
    }

    #[test]
    fn busy_server_is_left_for_as_long_as_it_asks_unless_there_is_another() {
        let busy = |seconds| SessionError::Busy { server: "a".into(), retry_after: Millis::from_secs(seconds) };
        assert!(wait_after(&busy(20), 0, true) >= Duration::from_secs(20));
        assert!(wait_after(&busy(100_000), 0, true) <= BUSY_MAX * 2, "a server cannot keep a gateway away for good");
        assert!(wait_after(&busy(20), 0, false) <= BACKOFF_BASE);
    }
}
