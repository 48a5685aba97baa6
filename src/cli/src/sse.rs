//! Follows events over server-sent events, and resumes from a cursor after lost connections and server restarts.
//! Knows nothing of what the events mean.

use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};
use serde_json::Value;
use tokio::{sync::mpsc, task::AbortHandle, time::Instant};

use super::{
    client::Client,
    failure::{Exit, Failure},
    retry::Backoff,
};

/// How long the server may be silent; it sends a heartbeat every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(35);
/// How long the server may be unreachable before following ends.
pub const AWAY_MAX: Duration = Duration::from_secs(600);
/// The longest line, in bytes.
const LINE_BYTES_MAX: usize = 4 << 20;
/// How many items are buffered for a slow reader; then the server has to wait.
const ITEMS_MAX: usize = 256;

/// An event, or a change of the connection.
#[derive(Debug)]
pub enum Item {
    Event(Value),
    /// The connection broke; it is being restored.
    Lost(Failure),
    /// The connection is restored, and no event was missed.
    Back,
    /// The server no longer has the events after the cursor.
    Gap,
    /// Following has ended for good.
    End(Failure),
}

/// A live stream of events; dropping it closes the connection.
pub struct Feed {
    items: mpsc::Receiver<Item>,
    task: AbortHandle,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Feed {
    /// Follows the events of `subject` (all without one) after the event `after` (without one, from now on).
    pub fn start(client: Client, subject: Option<String>, after: Option<String>) -> Self {
        let (sender, items) = mpsc::channel(ITEMS_MAX);
        let task = tokio::spawn(run(client, subject, after, sender)).abort_handle();
        Self { items, task }
    }

    /// The next item. After [`Item::End`] it never returns.
    pub async fn next(&mut self) -> Item {
        match self.items.recv().await {
            Some(item) => item,
            None => std::future::pending().await,
        }
    }
}

async fn run(client: Client, subject: Option<String>, mut after: Option<String>, sender: mpsc::Sender<Item>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut lost_at: Option<Instant> = None;
    loop {
        let failure = match connect(&client, subject.as_deref(), after.as_deref()).await {
            Ok(response) => {
                if lost_at.take().is_some() && sender.send(Item::Back).await.is_err() {
                    return;
                }
                backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
                match read(response, &mut after, &sender).await {
                    Some(failure) => failure,
                    None => return,
                }
            }
            Err(failure) => failure,
        };
        if failure.code() == "cursor_too_old" {
            after = failure.field("cursor").map(str::to_owned);
            if sender.send(Item::Gap).await.is_err() {
                return;
            }
            continue;
        }
        let since = *lost_at.get_or_insert_with(Instant::now);
        let item = match failure.exit() {
            Exit::Unreachable if since.elapsed() < AWAY_MAX => Item::Lost(failure),
            _ => Item::End(failure),
        };
        let ends = matches!(item, Item::End(_));
        if sender.send(item).await.is_err() || ends {
            return;
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

async fn connect(client: &Client, subject: Option<&str>, after: Option<&str>) -> Result<reqwest::Response, Failure> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
    let mut query = Vec::new();
    query.extend(subject.map(|subject| ("subject", subject.to_owned())));
    query.extend(after.map(|after| ("after", after.to_owned())));
    client.stream(&["v1", "events"], &query, headers).await
}

/// Reads until the connection ends, and returns why; none if the reader is gone.
async fn read(mut response: reqwest::Response, after: &mut Option<String>, sender: &mpsc::Sender<Item>) -> Option<Failure> {
    let lost =
        |why: &str| Failure::new(Exit::Unreachable, "unreachable", format!("the connection to the server was lost: {why}"));
    let mut parser = Parser::default();
    loop {
        let chunk = match tokio::time::timeout(SILENCE_MAX, response.chunk()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => return Some(lost("the server closed it")),
            Ok(Err(error)) => return Some(lost(&error.to_string())),
            Err(_) => return Some(lost("no heartbeat")),
        };
        let Some(frames) = parser.feed(&chunk) else { return Some(lost("a line exceeds 4 MiB")) };
        for frame in frames {
            if frame.event == "problem" {
                let problem: Option<Value> = serde_json::from_str(&frame.data).ok();
                let status = problem.as_ref().and_then(|problem| problem.get("status")?.as_u64());
                let status = status.and_then(|status| reqwest::StatusCode::from_u16(status as u16).ok()).unwrap_or_default();
                return Some(problem.map_or_else(|| lost(&frame.data), |problem| super::problem::of_problem(status, problem)));
            }
            if frame.event == "event"
                && let Ok(event) = serde_json::from_str(&frame.data)
                && sender.send(Item::Event(event)).await.is_err()
            {
                return None;
            }
            // After the event was delivered: one that was not is requested again.
            if !frame.id.is_empty() {
                *after = Some(frame.id);
            }
        }
    }
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Frame {
    event: String,
    id: String,
    data: String,
}

/// Splits a stream of bytes into events, as <https://html.spec.whatwg.org/multipage/server-sent-events.html> has it.
#[derive(Debug, Default)]
struct Parser {
    rest: Vec<u8>,
    frame: Frame,
}

impl Parser {
    /// The events that `bytes` completes; none if a line is too long.
    fn feed(&mut self, bytes: &[u8]) -> Option<Vec<Frame>> {
        self.rest.extend_from_slice(bytes);
        let mut frames = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                let frame = std::mem::take(&mut self.frame);
                if frame != Frame::default() {
                    frames.push(frame);
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => self.frame.event = value.to_owned(),
                "id" => self.frame.id = value.to_owned(),
                "data" if self.frame.data.is_empty() => self.frame.data = value.to_owned(),
                "data" => self.frame.data.extend(["\n", value]),
                _ => {}
            }
        }
        (self.rest.len() <= LINE_BYTES_MAX).then_some(frames)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parser_finds_events_however_bytes_are_split() {
        let text =
            ": hello\nid: 1.0\nevent: cursor\ndata: 1.0\n\nevent: event\r\nid: 2.0\r\ndata: {\"a\":\ndata: 1}\r\n\r\nid: 3";
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let frames: Vec<Frame> = text.as_bytes().chunks(size).flat_map(|chunk| parser.feed(chunk).unwrap()).collect();
            let seen: Vec<_> = frames.iter().map(|f| (f.event.as_str(), f.id.as_str(), f.data.as_str())).collect();
            assert_eq!(seen, [("cursor", "1.0", "1.0"), ("event", "2.0", "{\"a\":\n1}")]);
        }
    }

    #[test]
    fn parser_refuses_line_without_end() {
        assert!(Parser::default().feed(&vec![b'x'; LINE_BYTES_MAX + 1]).is_none());
    }
}
