//! The session of one simulated agent, from its hello to its end. Must not know what instances do: it carries a [`SimulatedTarget`]'s
//! messages and tells it what the server says.

use std::{net::SocketAddr, time::Duration};

use futures::{SinkExt as _, StreamExt as _};
use swell_model::{
    units::Millis,
    wire::{AgentToServer, FRAME_BYTES_MAX, HEARTBEAT_EVERY, Refusal, SILENCE_MAX, ServerToAgent},
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message as Frame};

use crate::{
    Error,
    connect::open_websocket,
    counters::Counters,
    target::{Message, SimulatedTarget},
};

/// Where agents connect.
const PATH: &str = "/v1/agents/session";

/// How long the network may take to accept a message.
const SEND_WITHIN: Duration = Duration::from_secs(30);

/// Why a session ended that did not break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The server will never accept this agent.
    Refused(Refusal),
    /// The server asks to try again after so long.
    Busy(Millis),
}

/// What all sessions of one generator have in common.
pub struct Shared {
    pub server: SocketAddr,
    pub token: String,
    pub counters: Counters,
    /// When the generator's clock was zero.
    pub started: Instant,
}

impl Shared {
    /// Milliseconds since the generator began.
    pub fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn at(&self, ms: u64) -> Instant {
        self.started + Duration::from_millis(ms)
    }
}

/// Runs the generator's `number`-th session until the server ends it.
///
/// # Errors
/// When it cannot be opened, breaks, or the server is silent for [`SILENCE_MAX`].
pub async fn run(shared: &Shared, number: u32, target: &mut SimulatedTarget, random: &mut fastrand::Rng) -> Result<End, Error> {
    let mut session = Session::open(shared, number).await?;
    session.send(&AgentToServer::Hello(target.hello())).await?;
    match session.receive().await? {
        ServerToAgent::Welcome { reports_known } => {
            for message in target.welcomed(reports_known) {
                session.report(message).await?;
            }
        }
        ServerToAgent::Refused(refusal) => return Ok(End::Refused(refusal)),
        ServerToAgent::Busy { retry_after } => return Ok(End::Busy(retry_after)),
        other => return Err(session.unexpected(&other)),
    }
    shared.counters.opened();
    let _open = Open(&shared.counters);
    let mut heartbeat_at = next_heartbeat(random);
    let mut silent_at = Instant::now() + SILENCE_MAX.as_duration();
    loop {
        // What is due is not put off by a server that sends without pause.
        target.advance(shared.now());
        shared.counters.record(target.take_notices());
        while let Some(message) = target.take_message() {
            session.report(message).await?;
        }
        if heartbeat_at <= Instant::now() {
            session.send(&AgentToServer::Heartbeat).await?;
            heartbeat_at = next_heartbeat(random);
        }
        let due = target.due().map_or(heartbeat_at, |due| shared.at(due).min(heartbeat_at));
        let message = tokio::select! {
            message = session.receive() => message?,
            () = sleep_until(due.min(silent_at)) => {
                if silent_at <= Instant::now() {
                    return Err(Error::TimedOut { doing: format!("hearing from {}", shared.server), limit: SILENCE_MAX.as_duration() });
                }
                continue;
            }
        };
        silent_at = Instant::now() + SILENCE_MAX.as_duration();
        match message {
            ServerToAgent::Desired(desired) => {
                Counters::add(&shared.counters.desired_frames, 1);
                target.follow(&desired, shared.now());
            }
            ServerToAgent::Acknowledged { sequence } => target.acknowledged(sequence),
            ServerToAgent::Routed { sequence } => target.routed(sequence),
            ServerToAgent::Heartbeat => {}
            ServerToAgent::Refused(refusal) => return Ok(End::Refused(refusal)),
            ServerToAgent::Busy { retry_after } => return Ok(End::Busy(retry_after)),
            ServerToAgent::Welcome { .. } => return Err(session.unexpected(&message)),
        }
    }
}

/// With up to a quarter of jitter, so that a fleet that came at once does not beat at once.
fn next_heartbeat(random: &mut fastrand::Rng) -> Instant {
    Instant::now() + HEARTBEAT_EVERY.as_duration().mul_f64(1.0 - 0.25 * random.f64())
}

/// Counts a session as open until dropped.
struct Open<'c>(&'c Counters);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.closed();
    }
}

struct Session<'s> {
    shared: &'s Shared,
    socket: WebSocketStream<TcpStream>,
}

impl<'s> Session<'s> {
    async fn open(shared: &'s Shared, number: u32) -> Result<Self, Error> {
        let socket = open_websocket(shared.server, number, PATH, &shared.token, FRAME_BYTES_MAX).await?;
        Ok(Self { shared, socket })
    }

    async fn report(&mut self, message: Message) -> Result<(), Error> {
        Counters::add(&self.shared.counters.report_frames, 1);
        self.send(&AgentToServer::Report { sequence: message.sequence, reports: message.reports }).await
    }

    async fn send(&mut self, message: &AgentToServer) -> Result<(), Error> {
        let server = self.shared.server;
        let frame = rmp_serde::to_vec_named(message).map_err(|error| Error::Message { server, what: error.to_string() })?;
        Counters::add(&self.shared.counters.frames_sent, 1);
        Counters::add(&self.shared.counters.bytes_sent, frame.len() as u64);
        let timed_out = |_| Error::TimedOut { doing: format!("sending to {server}"), limit: SEND_WITHIN };
        let sent = timeout(SEND_WITHIN, self.socket.send(Frame::binary(frame))).await.map_err(timed_out)?;
        sent.map_err(|source| Error::WebSocket { server, source: Box::new(source) })
    }

    /// The next message. Cancel safe.
    async fn receive(&mut self) -> Result<ServerToAgent, Error> {
        let server = self.shared.server;
        let next = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Frame::Binary(frame))) => break Ok(frame),
                    Some(Ok(Frame::Close(_))) | None => break Err(Error::Closed { server }),
                    // Pings are answered by the library when it next reads or writes.
                    Some(Ok(_)) => {}
                    Some(Err(source)) => break Err(Error::WebSocket { server, source: Box::new(source) }),
                }
            }
        };
        let timed_out = |_| Error::TimedOut { doing: format!("hearing from {server}"), limit: SILENCE_MAX.as_duration() };
        let frame = timeout(SILENCE_MAX.as_duration(), next).await.map_err(timed_out)??;
        Counters::add(&self.shared.counters.frames_received, 1);
        Counters::add(&self.shared.counters.bytes_received, frame.len() as u64);
        rmp_serde::from_slice(&frame).map_err(|error| Error::Message { server, what: error.to_string() })
    }

    fn unexpected(&self, message: &ServerToAgent) -> Error {
        Error::Message { server: self.shared.server, what: format!("unexpected {message:?}") }
    }
}
