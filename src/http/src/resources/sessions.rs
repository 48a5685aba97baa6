//! `/v1/agents/session`, `/v1/gateways/session`: WebSockets with one MessagePack message a frame, handed over as a [`Link`].
//! Knows nothing of what the messages mean but a gateway's first.

use axum::{
    extract::{
        State,
        ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use futures::{FutureExt, SinkExt, StreamExt, channel::mpsc};
use hyper::StatusCode;
use serde::{Serialize, de::DeserializeOwned};

use crate::{app::App, problem::Problem};
use swell_model::{
    interfaces::{LINK_FRAMES_MAX, Link},
    routing::messages::GatewayToServer,
    wire::{FRAME_BYTES_MAX, ROUTES_BYTES_MAX, SILENCE_MAX},
};

/// Buffers of a session at rest, each way, in bytes.
const BUFFER_BYTES: usize = 4096;

/// What differs between the links of agents and of gateways.
#[derive(Clone, Copy)]
struct LinkOptions {
    /// Largest frame that is sent, in bytes.
    sent_bytes_max: usize,
    /// Frames that wait each way. Few for agents: what waits longest is kept where the newest wins.
    frames_max: usize,
    /// Whether this side ends a link on which nothing is heard.
    ends_silence: bool,
}

const AGENT_LINK: LinkOptions = LinkOptions { sent_bytes_max: FRAME_BYTES_MAX, frames_max: 4, ends_silence: false };

const GATEWAY_LINK: LinkOptions =
    LinkOptions { sent_bytes_max: ROUTES_BYTES_MAX, frames_max: LINK_FRAMES_MAX, ends_silence: true };

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// An agent's session.
pub async fn agent(State(app): State<App>, upgrade: Upgrade) -> Result<Response, Problem> {
    Ok(bounded(upgrade, FRAME_BYTES_MAX)?.on_upgrade(move |socket| async move {
        // Whoever serves the session notices silence, for all sessions at once.
        let (link, pump) = link(socket, AGENT_LINK);
        tokio::join!(app.sessions.agent(link), pump);
    }))
}

/// A gateway's session. Its first frame is its hello.
pub async fn gateway(State(app): State<App>, upgrade: Upgrade) -> Result<Response, Problem> {
    Ok(bounded(upgrade, ROUTES_BYTES_MAX)?.on_upgrade(move |mut socket| async move {
        match receive(&mut socket).await {
            Ok(GatewayToServer::Hello(hello)) => {
                let (link, pump) = link(socket, GATEWAY_LINK);
                tokio::join!(app.sessions.gateway(hello, link), pump);
            }
            Ok(_) => close(socket, "the first message must be a hello").await,
            Err(why) => close(socket, why).await,
        }
    }))
}

/// Received frames are bounded by [`FRAME_BYTES_MAX`], sent ones by `sent_bytes_max`. Buffers begin small: most sessions are at rest.
fn bounded(upgrade: Upgrade, sent_bytes_max: usize) -> Result<WebSocketUpgrade, Problem> {
    let upgrade = upgrade.map_err(|rejection| {
        let hint = "agents and gateways connect here by themselves";
        Problem::new(StatusCode::UPGRADE_REQUIRED, "not_a_websocket", rejection.body_text(), hint)
    })?;
    let upgrade = upgrade.read_buffer_size(BUFFER_BYTES).write_buffer_size(BUFFER_BYTES);
    Ok(upgrade.max_message_size(FRAME_BYTES_MAX).max_frame_size(FRAME_BYTES_MAX).max_write_buffer_size(2 * sent_bytes_max))
}

/// A link over `socket`, and what must run while it lasts. When the sink drops its ends the socket is closed; when the socket is
/// silent or gone, the sink's ends close.
fn link<In, Out>(socket: WebSocket, options: LinkOptions) -> (Link<In, Out>, impl Future<Output = ()> + Send)
where
    In: DeserializeOwned + Send + 'static,
    Out: Serialize + Send + 'static,
{
    // A channel of futures has room for one more per sender.
    let (in_tx, incoming) = mpsc::channel(options.frames_max - 1);
    let (outgoing, out_rx) = mpsc::channel(options.frames_max - 1);
    (Link { incoming, outgoing }, pump(socket, in_tx, out_rx, options))
}

async fn pump<In, Out>(socket: WebSocket, mut received: mpsc::Sender<In>, mut to_send: mpsc::Receiver<Out>, options: LinkOptions)
where
    In: DeserializeOwned + Send + 'static,
    Out: Serialize + Send + 'static,
{
    let (mut sending, mut receiving) = socket.split();
    // Each way on its own, so that a sink that is slow to read still gets through what it sends.
    let hearing = async {
        loop {
            let next = next_message(&mut receiving);
            let next = if options.ends_silence {
                tokio::time::timeout(SILENCE_MAX.as_duration(), next).await.unwrap_or(Err("nothing heard for too long"))
            } else {
                next.await
            };
            let message: In = match next {
                Ok(message) => message,
                Err(why) => return why,
            };
            // Without a limit in time: the sink ends the link when it is no longer served.
            if received.send(message).await.is_err() {
                return "the session is over";
            }
        }
    };
    let saying = async {
        while let Some(message) = to_send.next().await {
            let Ok(frame) = rmp_serde::to_vec_named(&message) else { return "a message cannot be written" };
            if frame.len() > options.sent_bytes_max {
                tracing::error!(bytes = frame.len(), "a message is larger than a frame may be");
                return "a message is too large";
            }
            let sent = tokio::time::timeout(SILENCE_MAX.as_duration(), sending.send(Message::binary(frame))).await;
            if !matches!(sent, Ok(Ok(()))) {
                return "the other side does not listen";
            }
        }
        "the session is over"
    };
    let why = futures::future::select(hearing.boxed(), saying.boxed()).await.factor_first().0;
    tracing::debug!(why, "a session ends");
    let goodbye = tokio::time::timeout(std::time::Duration::from_secs(5), sending.send(close_frame(why))).await;
    if !matches!(goodbye, Ok(Ok(()))) {
        tracing::debug!("the other side was gone before the session was closed");
    }
}

/// The next message of any kind that carries one. Pings are answered below us.
async fn next_message<In: DeserializeOwned>(
    receiving: &mut (impl futures::Stream<Item = Result<Message, axum::Error>> + Unpin),
) -> Result<In, &'static str> {
    loop {
        match receiving.next().await {
            Some(Ok(Message::Binary(frame))) => {
                return rmp_serde::from_slice(&frame).map_err(|error| {
                    tracing::warn!(%error, "a frame cannot be read");
                    "a frame cannot be read"
                });
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Text(_))) => return Err("frames are binary"),
            Some(Ok(Message::Close(_))) | None => return Err("it was closed"),
            Some(Err(error)) => {
                tracing::debug!(%error, "a session broke off");
                return Err("it broke off");
            }
        }
    }
}

async fn receive<In: DeserializeOwned>(socket: &mut WebSocket) -> Result<In, &'static str> {
    let first = tokio::time::timeout(SILENCE_MAX.as_duration(), next_message(socket)).await;
    first.unwrap_or(Err("nothing was heard for too long"))
}

async fn close(mut socket: WebSocket, why: &'static str) {
    if socket.send(close_frame(why)).await.is_err() {
        tracing::debug!(why, "a session ended before it was closed");
    }
}

fn close_frame(why: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::from_static(why) }))
}
