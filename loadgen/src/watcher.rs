//! A simulated user who watches events as a dashboard does: server-sent events over one connection.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1::handshake,
    header::{ACCEPT, AUTHORIZATION, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::{sync::watch, time::timeout};

use crate::{Error, api::Api, connect::open_tcp};

/// How long the server may be silent: it sends a comment more often than that.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What a watcher has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Received {
    pub events: u64,
    pub bytes: u64,
}

/// Watches all events from now on, as the generator's `number`-th connection, until the server ends the stream.
///
/// # Errors
/// When the stream cannot be opened or breaks.
pub async fn run(api: &Api, number: u32, received: &watch::Sender<Received>) -> Result<(), Error> {
    let server = api.server;
    let stream = open_tcp(server, number).await?;
    let broken = |source| Error::Http { server, source };
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::get("/v1/events")
        .header(HOST, server.to_string())
        .header(ACCEPT, "text/event-stream")
        .header(AUTHORIZATION, format!("Bearer {}", api.token))
        .body(Empty::<Bytes>::new())
        .map_err(|error| Error::Request(error.to_string()))?;
    let watching = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status().as_u16();
        if status != 200 {
            let (method, path) = ("GET".to_owned(), "/v1/events".to_owned());
            return Err(Error::Refused { method, path, status, answer: String::new() });
        }
        let mut body = answer.into_body();
        let mut at_line_start = true;
        loop {
            let timed_out = |_| Error::TimedOut { doing: format!("hearing from {server}"), limit: SILENCE_MAX };
            let Some(frame) = timeout(SILENCE_MAX, body.frame()).await.map_err(timed_out)? else { return Ok(()) };
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            let events = count_events(&data, &mut at_line_start);
            received.send_modify(|received| {
                received.events += events;
                received.bytes += data.len() as u64;
            });
        }
    };
    // The connection moves its bytes while it is waited for; it ends after the stream does.
    let connection = async {
        connection.await.map_err(broken)?;
        Err(Error::Closed { server })
    };
    tokio::select! {
        ended = watching => ended,
        ended = connection => ended,
    }
}

/// Counts the lines that begin with `data:`'s first letter; no other field of an event stream begins with it.
fn count_events(data: &[u8], at_line_start: &mut bool) -> u64 {
    let mut events = 0;
    for byte in data {
        events += u64::from(*at_line_start && *byte == b'd');
        *at_line_start = *byte == b'\n';
    }
    events
}

#[cfg(test)]
mod tests {
    use super::count_events;

    #[test]
    fn events_are_counted_across_frames() {
        let mut at_line_start = true;
        let frames = ["id: 1.0\nevent: x\ndata: {\"d\":1}\n\n: ", "quiet\n\nid: 2.0\n", "data: {}\n\n"];
        let events: u64 = frames.iter().map(|frame| count_events(frame.as_bytes(), &mut at_line_start)).sum();
        assert_eq!(events, 2);
    }
}
