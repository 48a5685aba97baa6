//! The one connection to one server: desired state comes, reports go. When it breaks another server is tried, and everything that runs goes
//! on. Must not know what is done with a desired state.
//!
//! The protocol: a WebSocket to `/v1/agents/session` with a bearer token; the messages are `model::wire`'s.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures::{SinkExt, StreamExt};
use hyper::header::{self, HeaderValue};
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{self, Message, client::IntoClientRequest, protocol::WebSocketConfig},
};
use tokio_util::sync::CancellationToken;

use super::{options::backoff_ms, pipeline::Shared};
use swell_model::{
    rollout::assignment::{DesiredTarget, Generation},
    wire::{AgentToServer, FRAME_BYTES_MAX, HEARTBEAT_EVERY, SILENCE_MAX, ServerToAgent},
};

/// Time for connecting, and for each message to be taken by the network.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Reports that follow each other sooner go together.
const REPORT_PAUSE: Duration = Duration::from_millis(20);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("asking for a session at `{server}`: {what}; correct the agent's `servers` or token")]
    Configured { server: String, what: String },
    #[error("the session with {server} broke: {source}; another server is tried")]
    Broken { server: String, source: Box<tungstenite::Error> },
    #[error("the session with {server} ended: {doing} took too long; another server is tried")]
    TooSlow { server: String, doing: &'static str },
    #[error("the session was ended by {server}; another server is tried")]
    Closed { server: String },
    #[error("a message of the session with {server} is not understood ({what}); do both run compatible versions?")]
    Message { server: String, what: String },
    #[error("{server} will not have this agent: {why}")]
    Refused { server: String, why: String },
    #[error("the agent is stopping")]
    Stopping,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Keeps a session with one of the servers until `stop`, trying them in turn, each time after a longer wait.
pub(super) async fn keep(
    shared: Arc<Shared>,
    following: watch::Receiver<Generation>,
    offers: mpsc::Sender<DesiredTarget>,
    stop: CancellationToken,
) {
    let mut failures: u32 = 0;
    // Anywhere in the list, so that a fleet spreads over its servers.
    let first = fastrand::usize(..shared.servers.len().max(1));
    for server in shared.servers.iter().cycle().skip(first) {
        let mut useful = false;
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = one_session(server, &shared, &following, &offers, &mut useful) => ended,
        };
        shared.server.send_replace(None);
        let Err(error) = ended;
        failures = if useful { 1 } else { failures.saturating_add(1) };
        let most = Duration::from_millis(backoff_ms(failures, shared.timing.session_first, shared.timing.session_most));
        // Full jitter (Brooker, *Exponential Backoff and Jitter*, 2015), so that a fleet does not come back all at once.
        let wait = most.mul_f64(fastrand::f64().max(0.05));
        tracing::warn!(%server, %error, wait_ms = wait.as_millis() as u64, "without a session: what runs goes on");
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(wait) => {}
        }
    }
}

/// A session from connecting to its end, which is always an error. `useful` is set when the server sent something sensible.
async fn one_session(
    server: &str,
    shared: &Shared,
    following: &watch::Receiver<Generation>,
    offers: &mpsc::Sender<DesiredTarget>,
    useful: &mut bool,
) -> Result<Infallible, SessionError> {
    let mut socket = connect(server, &shared.token).await?;
    let (info, agent) = (shared.around.info.clone(), shared.id.clone());
    let hello = AgentToServer::Hello { info, following: *following.borrow(), agent };
    send(&mut socket, server, &hello).await?;
    tracing::info!(%server, "session began");
    shared.server.send_replace(Some(server.to_owned()));
    shared.reports.forget_heard();
    let mut heartbeat_at = next_heartbeat();
    let mut silent_at = Instant::now() + SILENCE_MAX.as_duration();
    let mut report_at = Instant::now();
    loop {
        tokio::select! {
            () = sleep_until(heartbeat_at) => {
                send(&mut socket, server, &AgentToServer::Heartbeat).await?;
                heartbeat_at = next_heartbeat();
            }
            reports = async { sleep_until(report_at).await; shared.reports.take().await } => {
                send(&mut socket, server, &AgentToServer::Report(reports)).await?;
                report_at = Instant::now() + REPORT_PAUSE;
            }
            frame = timeout_at(silent_at, socket.next()) => {
                let frame = frame.map_err(|_| SessionError::TooSlow { server: server.to_owned(), doing: "hearing from it" })?;
                let frame = frame.ok_or_else(|| SessionError::Closed { server: server.to_owned() })?;
                let frame = frame.map_err(|error| broken(server, error))?;
                silent_at = Instant::now() + SILENCE_MAX.as_duration();
                match frame {
                    Message::Binary(bytes) => {
                        obey(&bytes, server, offers).await?;
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

fn next_heartbeat() -> Instant {
    Instant::now() + HEARTBEAT_EVERY.as_duration().mul_f64(1.0 - 0.25 * fastrand::f64())
}

async fn obey(bytes: &[u8], server: &str, offers: &mpsc::Sender<DesiredTarget>) -> Result<(), SessionError> {
    let message = rmp_serde::from_slice(bytes)
        .map_err(|error| SessionError::Message { server: server.to_owned(), what: error.to_string() })?;
    match message {
        ServerToAgent::Heartbeat => Ok(()),
        ServerToAgent::Desired(desired) => offers.send(desired).await.map_err(|_| SessionError::Stopping),
        ServerToAgent::Refused(why) => Err(SessionError::Refused { server: server.to_owned(), why }),
    }
}

async fn connect(server: &str, token: &str) -> Result<Socket, SessionError> {
    let configured = |what: String| SessionError::Configured { server: server.to_owned(), what };
    let address = server.strip_prefix("http://").unwrap_or(server);
    let url = format!("ws://{address}/v1/agents/session");
    let mut request = url.into_client_request().map_err(|error| configured(error.to_string()))?;
    let mut bearer =
        HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| configured("the token is no header value".into()))?;
    bearer.set_sensitive(true);
    request.headers_mut().insert(header::AUTHORIZATION, bearer);
    let config = WebSocketConfig::default().max_message_size(Some(FRAME_BYTES_MAX)).max_frame_size(Some(FRAME_BYTES_MAX));
    match timeout(STEP_TIMEOUT, connect_async_with_config(request, Some(config), true)).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(error)) => Err(broken(server, error)),
        Err(_) => Err(SessionError::TooSlow { server: server.to_owned(), doing: "connecting" }),
    }
}

fn broken(server: &str, error: tungstenite::Error) -> SessionError {
    SessionError::Broken { server: server.to_owned(), source: Box::new(error) }
}

async fn send(socket: &mut Socket, server: &str, message: &AgentToServer) -> Result<(), SessionError> {
    let frame = rmp_serde::to_vec_named(message)
        .map_err(|error| SessionError::Message { server: server.to_owned(), what: error.to_string() })?;
    match timeout(STEP_TIMEOUT, socket.send(Message::binary(frame))).await {
        Ok(sent) => sent.map_err(|error| broken(server, error)),
        Err(_) => Err(SessionError::TooSlow { server: server.to_owned(), doing: "sending to it" }),
    }
}
