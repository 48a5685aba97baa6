//! One connection to one server, from which route tables come. When it breaks the gateway goes on serving and looks for another
//! server. Knows nothing of requests.
//!
//! The protocol: a WebSocket to `/v1/gateways/session` with a bearer token; the messages are `model::routes`'.

use std::{net::SocketAddr, time::Duration};

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
    routing::table::{GatewayHello, GatewayToServer, ServerToGateway},
    wire::{HEARTBEAT_EVERY, ROUTES_BYTES_MAX, SILENCE_MAX},
};

/// Time for connecting, and for each message to be taken by the network.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// The first wait before another server is tried; doubled each time.
const BACKOFF_BASE: Duration = Duration::from_millis(200);
/// The longest such wait.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The configuration cannot be used.
    #[error("asking for a session at `{server}`: {what}; correct the gateway's `servers` or token")]
    Configured {
        /// The server as configured.
        server: String,
        /// What is wrong.
        what: String,
    },
    /// It did not begin, or broke.
    #[error("the session with {server} broke: {source}; another server is tried")]
    Broken {
        /// Which server.
        server: String,
        /// How.
        source: Box<tungstenite::Error>,
    },
    /// The server took too long.
    #[error("the session with {server} ended: {doing} took too long; another server is tried")]
    TooSlow {
        /// Which server.
        server: String,
        /// What took too long.
        doing: &'static str,
    },
    /// The server ended it.
    #[error("the session was ended by {server}; another server is tried")]
    Closed {
        /// Which server.
        server: String,
    },
    /// A message could not be read or written.
    #[error("a message of the session with {server} is not understood ({what}); do both run compatible versions?")]
    Message {
        /// Which server.
        server: String,
        /// What is wrong.
        what: String,
    },
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Who the gateway says it is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Where it listens for requests.
    pub addresses: Vec<SocketAddr>,
}

/// Keeps a session with one of the servers until `stop`, trying them in turn, each round after a longer wait.
pub async fn keep(config: SessionConfig, identity: Identity, table: TableHandle, stop: CancellationToken) {
    let mut failures: u32 = 0;
    for server in config.servers.iter().cycle() {
        let mut useful = false;
        let session = one_session(server, &config.token, &identity, &table, &mut useful);
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = session => ended,
        };
        failures = if useful { 0 } else { failures.saturating_add(1) };
        let wait = backoff(failures);
        match ended {
            Ok(never) => match never {},
            Err(error) => {
                tracing::warn!(%server, %error, wait_ms = wait.as_millis() as u64, "without a session: serving by the last routes")
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Full jitter (Brooker, *Exponential Backoff and Jitter*, 2015), so that gateways don't come back all at once.
fn backoff(failures: u32) -> Duration {
    let most = BACKOFF_BASE.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
    most.mul_f64(fastrand::f64().max(0.05))
}

/// A session from connecting to its end, which is always an error. `useful` is set when the server sent something sensible.
async fn one_session(
    server: &str,
    token: &str,
    identity: &Identity,
    table: &TableHandle,
    useful: &mut bool,
) -> Result<std::convert::Infallible, SessionError> {
    let mut socket = connect(server, token).await?;
    let hello = GatewayHello {
        name: identity.name.clone(),
        zone: identity.zone.clone(),
        addresses: identity.addresses.clone(),
        generation: table.generation(),
    };
    send(&mut socket, server, &GatewayToServer::Hello(hello)).await?;
    tracing::info!(%server, "session began");

    let mut heartbeat = interval(HEARTBEAT_EVERY.as_duration());
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat.reset();
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            _ = heartbeat.tick() => {
                send(&mut socket, server, &GatewayToServer::Heartbeat { generation: table.generation() }).await?;
            }
            frame = timeout_at(heard + SILENCE_MAX.as_duration(), socket.next()) => {
                let frame = frame.map_err(|_| SessionError::TooSlow { server: server.to_owned(), doing: "hearing from it" })?;
                let frame = frame.ok_or_else(|| SessionError::Closed { server: server.to_owned() })?;
                let frame = frame.map_err(|error| broken(server, error))?;
                heard = Instant::now();
                match frame {
                    Message::Binary(bytes) => {
                        obey(bytes.into(), server, table).await?;
                        *useful = true;
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
    let configured = |what: String| SessionError::Configured { server: server.to_owned(), what };
    let url = format!("ws://{server}/v1/gateways/session");
    let mut request = url.into_client_request().map_err(|error| configured(error.to_string()))?;
    let mut bearer =
        HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| configured("the token is no header value".into()))?;
    bearer.set_sensitive(true);
    request.headers_mut().insert(header::AUTHORIZATION, bearer);
    let config = WebSocketConfig::default().max_message_size(Some(ROUTES_BYTES_MAX)).max_frame_size(Some(ROUTES_BYTES_MAX));
    match timeout(STEP_TIMEOUT, connect_async_with_config(request, Some(config), true)).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(error)) => Err(broken(server, error)),
        Err(_) => Err(SessionError::TooSlow { server: server.to_owned(), doing: "connecting" }),
    }
}

fn broken(server: &str, error: tungstenite::Error) -> SessionError {
    SessionError::Broken { server: server.to_owned(), source: Box::new(error) }
}

async fn send(socket: &mut Socket, server: &str, message: &impl Serialize) -> Result<(), SessionError> {
    let frame = rmp_serde::to_vec_named(message)
        .map_err(|error| SessionError::Message { server: server.to_owned(), what: error.to_string() })?;
    match timeout(STEP_TIMEOUT, socket.send(Message::binary(frame))).await {
        Ok(sent) => sent.map_err(|error| broken(server, error)),
        Err(_) => Err(SessionError::TooSlow { server: server.to_owned(), doing: "sending to it" }),
    }
}

/// Reading and applying a large table takes milliseconds: not on a thread that forwards requests.
async fn obey(bytes: Vec<u8>, server: &str, table: &TableHandle) -> Result<(), SessionError> {
    let not_understood = |what: String| SessionError::Message { server: server.to_owned(), what };
    let table = table.clone();
    let applied = tokio::task::spawn_blocking(move || {
        rmp_serde::from_slice(&bytes).map(|message| match message {
            ServerToGateway::Heartbeat => None,
            ServerToGateway::Routes(routes) => {
                let (generation, services) = (routes.generation, routes.services.len());
                Some(table.apply(routes).map(|()| (generation, services)))
            }
        })
    });
    match applied.await.map_err(|error| not_understood(error.to_string()))?.map_err(|error| not_understood(error.to_string()))? {
        None => {}
        Some(Ok((generation, services))) => tracing::info!(generation, services, %server, "routes applied"),
        // Usual after reconnecting: the server sends what this gateway has already.
        Some(Err(outdated)) if outdated.offered == outdated.held => tracing::debug!(%server, "routes are those held"),
        Some(Err(outdated)) => tracing::warn!(%server, error = %outdated, "routes refused"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_differ() {
        for failures in 0..100 {
            assert!(backoff(failures) <= BACKOFF_MAX);
            assert!(backoff(failures) >= Duration::from_millis(10));
        }
        assert_ne!((0..8).map(|_| backoff(9)).collect::<Vec<_>>(), (0..8).map(|_| backoff(9)).collect::<Vec<_>>());
    }
}
