//! The one connection to one server: desired state arrives, reports leave. When it breaks another server is tried, and instances keep
//! running. Must not know what is done with a desired state.
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

use super::{
    context::Context,
    options::{Timing, backoff_ms},
    session_error::SessionError,
};
use swell_model::{
    digest::Digest,
    rollout::assignment::{DesiredTarget, Generation},
    units::Millis,
    wire::{AgentHello, AgentToServer, FRAME_BYTES_MAX, HEARTBEAT_EVERY, PROTOCOL_VERSION, SILENCE_MAX, ServerToAgent},
};

/// Time for connecting, and for each message to be taken by the network.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Reports that follow each other sooner go together.
const REPORT_PAUSE: Duration = Duration::from_millis(20);
/// The longest wait that a server may ask for.
const RETRY_AFTER_MAX: Millis = Millis::from_secs(600);
/// The least wait before another session, as a part of the longest: a fleet's waits are spread, and no agent spins.
const WAIT_PART_MIN: f64 = 0.05;

/// The desired state that the agent follows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Following {
    pub generation: Generation,
    /// None when there is none.
    pub hash: Option<Digest>,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Keeps a session with one of the servers until `stop`, trying them in turn, each time after a longer wait.
pub(super) async fn keep(
    context: Arc<Context>,
    following: watch::Receiver<Following>,
    offers: mpsc::Sender<DesiredTarget>,
    stop: CancellationToken,
) {
    let mut failures: u32 = 0;
    // Anywhere in the list, so that a fleet spreads over its servers.
    let first = fastrand::usize(..context.servers.len().max(1));
    for server in context.servers.iter().cycle().skip(first) {
        let mut welcomed = false;
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = one_session(server, &context, &following, &offers, &mut welcomed) => ended,
        };
        context.server.send_replace(None);
        let Err(error) = ended;
        failures = if welcomed { 1 } else { failures.saturating_add(1) };
        let wait = wait_after(&error, failures, &context.timing, fastrand::f64());
        let retry_in_ms = wait.as_millis() as u64;
        match error {
            error if error.needs_change() => {
                tracing::error!(%server, %error, retry_in_ms, "no session, keeping instances running")
            }
            error => tracing::warn!(%server, %error, retry_in_ms, "session lost, keeping instances running"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(wait) => {}
        }
    }
}

/// How long to wait after `failures` sessions in a row that ended at once, the last one like this. `random` is in 0..1.
///
/// Full jitter (Brooker, *Exponential Backoff and Jitter*, 2015), so that a fleet does not come back all at once.
fn wait_after(error: &SessionError, failures: u32, timing: &Timing, random: f64) -> Duration {
    let spread = |most: u64| Duration::from_millis(most).mul_f64(random.max(WAIT_PART_MIN));
    match error {
        SessionError::Busy { retry_after, .. } => {
            let retry_after = (*retry_after).min(RETRY_AFTER_MAX);
            retry_after.as_duration() + spread(retry_after.max(timing.session_first).0)
        }
        error if error.needs_change() => spread(timing.session_most.0) / 2 + timing.session_most.as_duration() / 2,
        _ => spread(backoff_ms(failures, timing.session_first, timing.session_most)),
    }
}

/// A session from connecting to its end, which is always an error. `welcomed` is set when the server opened it.
async fn one_session(
    server: &str,
    context: &Context,
    following: &watch::Receiver<Following>,
    offers: &mpsc::Sender<DesiredTarget>,
    welcomed: &mut bool,
) -> Result<Infallible, SessionError> {
    let mut socket = connect(server, &context.token).await?;
    let hello = hello(context, *following.borrow());
    send(&mut socket, server, &AgentToServer::Hello(hello)).await?;
    let mut heartbeat_at = next_heartbeat();
    let mut silent_at = Instant::now() + SILENCE_MAX.as_duration();
    let mut report_at = Instant::now();
    loop {
        tokio::select! {
            () = sleep_until(heartbeat_at) => {
                send(&mut socket, server, &AgentToServer::Heartbeat).await?;
                heartbeat_at = next_heartbeat();
            }
            (sequence, reports) = async { sleep_until(report_at).await; context.reports.take().await }, if *welcomed => {
                send(&mut socket, server, &AgentToServer::Report { sequence, reports }).await?;
                report_at = Instant::now() + REPORT_PAUSE;
            }
            frame = timeout_at(silent_at, socket.next()) => {
                let frame = frame.map_err(|_| SessionError::TimedOut { server: server.to_owned(), action: "waiting for a message" })?;
                let frame = frame.ok_or_else(|| SessionError::Closed { server: server.to_owned() })?;
                let frame = frame.map_err(|error| broken(server, error))?;
                silent_at = Instant::now() + SILENCE_MAX.as_duration();
                match frame {
                    Message::Binary(bytes) => obey(&bytes, server, context, offers, welcomed).await?,
                    Message::Close(_) => return Err(SessionError::Closed { server: server.to_owned() }),
                    // Pings are answered by the library when it next reads or writes.
                    _ => {}
                }
            }
        }
    }
}

fn hello(context: &Context, following: Following) -> AgentHello {
    AgentHello {
        version: PROTOCOL_VERSION,
        info: context.around.info.clone(),
        agent: context.identity.id.clone(),
        incarnation: context.identity.incarnation,
        following: following.generation,
        desired_hash: following.hash,
        reports_hash: context.reports.hello(),
    }
}

fn next_heartbeat() -> Instant {
    Instant::now() + HEARTBEAT_EVERY.as_duration().mul_f64(1.0 - 0.25 * fastrand::f64())
}

async fn obey(
    bytes: &[u8],
    server: &str,
    context: &Context,
    offers: &mpsc::Sender<DesiredTarget>,
    welcomed: &mut bool,
) -> Result<(), SessionError> {
    let message = rmp_serde::from_slice(bytes)
        .map_err(|error| SessionError::Message { server: server.to_owned(), reason: error.to_string() })?;
    match message {
        ServerToAgent::Welcome { reports_known } => {
            tracing::info!(%server, reports_known, "session opened");
            *welcomed = true;
            context.server.send_replace(Some(server.to_owned()));
            context.reports.welcomed(reports_known);
        }
        ServerToAgent::Refused(refusal) => {
            let info = Box::new(context.around.info.clone());
            return Err(SessionError::Refused { server: server.to_owned(), refusal, info });
        }
        ServerToAgent::Busy { retry_after } => return Err(SessionError::Busy { server: server.to_owned(), retry_after }),
        ServerToAgent::Heartbeat => {}
        message if !*welcomed => {
            let reason = format!("{message:?} before Welcome").chars().take(200).collect();
            return Err(SessionError::Message { server: server.to_owned(), reason });
        }
        ServerToAgent::Desired(desired) => offers.send(desired).await.map_err(|_| SessionError::Stopping)?,
        ServerToAgent::Acknowledged { sequence } => context.reports.acknowledged(sequence),
        ServerToAgent::Routed { sequence } => context.reports.routed(sequence),
    }
    Ok(())
}

async fn connect(server: &str, token: &str) -> Result<Socket, SessionError> {
    let configured = |reason: String| SessionError::Configured { server: server.to_owned(), reason };
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
        Ok(Err(error)) => Err(SessionError::connecting(server, error)),
        Err(_) => Err(SessionError::TimedOut { server: server.to_owned(), action: "connecting" }),
    }
}

fn broken(server: &str, error: tungstenite::Error) -> SessionError {
    SessionError::Broken { server: server.to_owned(), source: Box::new(error) }
}

async fn send(socket: &mut Socket, server: &str, message: &AgentToServer) -> Result<(), SessionError> {
    let frame = rmp_serde::to_vec_named(message)
        .map_err(|error| SessionError::Message { server: server.to_owned(), reason: error.to_string() })?;
    match timeout(STEP_TIMEOUT, socket.send(Message::binary(frame))).await {
        Ok(sent) => sent.map_err(|error| broken(server, error)),
        Err(_) => Err(SessionError::TimedOut { server: server.to_owned(), action: "sending" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn closed() -> SessionError {
        SessionError::Closed { server: String::new() }
    }

    fn busy(retry_after: Millis) -> SessionError {
        SessionError::Busy { server: String::new(), retry_after }
    }

    #[test]
    fn lost_session_is_retried_anywhere_within_the_backoff() {
        let timing = Timing::default();
        assert_eq!(wait_after(&closed(), 1, &timing, 0.5), SECOND.mul_f64(2.5));
        assert_eq!(wait_after(&closed(), 1, &timing, 0.0), SECOND / 4, "no agent spins");
        assert_eq!(wait_after(&closed(), 3, &timing, 0.5), SECOND * 10);
        assert_eq!(wait_after(&closed(), 99, &timing, 1.0), SECOND * 60);
    }

    #[test]
    fn fleet_that_lost_its_sessions_comes_back_evenly() {
        let timing = Timing::default();
        let mut seconds = [0_u32; 5];
        for agent in 0..50_000 {
            let wait = wait_after(&closed(), 1, &timing, f64::from(agent) / 50_000.0);
            seconds[(wait.as_secs() as usize).min(4)] += 1;
        }
        assert!(seconds.iter().all(|agents| (9_000..=11_000).contains(agents)), "{seconds:?}");
    }

    #[test]
    fn busy_server_is_left_alone_as_long_as_it_asks() {
        let timing = Timing::default();
        for random in [0.0, 0.5, 1.0] {
            let wait = wait_after(&busy(Millis::from_secs(20)), 1, &timing, random);
            assert!((20 * SECOND..=40 * SECOND).contains(&wait), "{wait:?}");
        }
        assert!(wait_after(&busy(Millis(0)), 1, &timing, 1.0) == 5 * SECOND, "spread also when it asks for nothing");
        assert!(wait_after(&busy(Millis(u64::MAX)), 1, &timing, 1.0) <= 2 * RETRY_AFTER_MAX.as_duration(), "bounded");
    }

    #[test]
    fn refusal_is_retried_slowly_from_the_beginning() {
        let timing = Timing::default();
        let refused = SessionError::Token { server: String::new(), status: hyper::StatusCode::FORBIDDEN };
        assert!(wait_after(&refused, 1, &timing, 0.0) >= 30 * SECOND);
    }
}
