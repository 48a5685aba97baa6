//! A simulated gateway: it takes every update of its routes and says by which it would serve. It keeps no routes and forwards nothing.

use std::net::SocketAddr;

use futures::{SinkExt as _, StreamExt as _};
use swell_model::{
    rollout::assignment::Generation,
    routing::{
        messages::{GatewayHello, GatewayId, GatewayToServer, ServedServices, ServerToGateway},
        table::RoutesHash,
    },
    wire::{FRAME_BYTES_MAX, HEARTBEAT_EVERY, PROTOCOL_VERSION, SILENCE_MAX},
};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message as Frame};

use crate::{Error, connect::open_websocket};

/// Where gateways connect.
const PATH: &str = "/v1/gateways/session";

/// What a simulated gateway has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Received {
    /// Frames with routes.
    pub frames: u64,
    /// Bytes of all frames.
    pub bytes: u64,
    /// Generation of the newest routes.
    pub generation: Generation,
}

/// Runs a gateway's session until the server ends it; `received` follows what comes.
///
/// # Errors
/// Always: why the session ended.
pub async fn run(server: SocketAddr, token: &str, name: &str, received: &watch::Sender<Received>) -> Result<(), Error> {
    let mut socket = open_websocket(server, 0, PATH, token, FRAME_BYTES_MAX).await?;
    let mut generation = Generation::default();
    let hello = GatewayHello {
        version: PROTOCOL_VERSION,
        gateway: GatewayId(format!("{:032x}", fastrand::u128(..))),
        name: name.to_owned(),
        zone: "zone-0".to_owned(),
        addresses: Vec::new(),
        serves: ServedServices::All,
        generation,
        hash: RoutesHash::default(),
    };
    send(&mut socket, server, &GatewayToServer::Hello(hello)).await?;
    let mut heartbeat_at = Instant::now() + HEARTBEAT_EVERY.as_duration();
    loop {
        let frame = tokio::select! {
            frame = timeout(SILENCE_MAX.as_duration(), socket.next()) => frame,
            () = sleep_until(heartbeat_at) => {
                send(&mut socket, server, &GatewayToServer::Heartbeat).await?;
                heartbeat_at = Instant::now() + HEARTBEAT_EVERY.as_duration();
                continue;
            }
        };
        let silent = |_| Error::TimedOut { doing: format!("hearing from {server}"), limit: SILENCE_MAX.as_duration() };
        let bytes = match frame.map_err(silent)? {
            Some(Ok(Frame::Binary(bytes))) => bytes,
            Some(Ok(Frame::Close(_))) | None => return Err(Error::Closed { server }),
            Some(Ok(_)) => continue,
            Some(Err(source)) => return Err(Error::WebSocket { server, source: Box::new(source) }),
        };
        let message = rmp_serde::from_slice(&bytes).map_err(|error| Error::Message { server, what: error.to_string() })?;
        match message {
            ServerToGateway::Routes(update) => {
                received.send_modify(|received| received.frames += 1);
                if !update.more {
                    generation = update.to;
                    // At once, as a real one does: agents wait for it before they end old instances.
                    send(&mut socket, server, &GatewayToServer::Routed { generation }).await?;
                }
            }
            ServerToGateway::Heartbeat => {}
            ServerToGateway::Refused(_) | ServerToGateway::Busy { .. } => return Err(Error::Closed { server }),
        }
        received.send_modify(|received| {
            received.bytes += bytes.len() as u64;
            received.generation = generation;
        });
    }
}

async fn send(socket: &mut WebSocketStream<TcpStream>, server: SocketAddr, message: &GatewayToServer) -> Result<(), Error> {
    let frame = rmp_serde::to_vec_named(message).map_err(|error| Error::Message { server, what: error.to_string() })?;
    let timed_out = |_| Error::TimedOut { doing: format!("sending to {server}"), limit: SILENCE_MAX.as_duration() };
    let sent = timeout(SILENCE_MAX.as_duration(), socket.send(Frame::binary(frame))).await.map_err(timed_out)?;
    sent.map_err(|source| Error::WebSocket { server, source: Box::new(source) })
}
