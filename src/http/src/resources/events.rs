//! `/v1/events`: the ordered log of everything that happened, a page at a time, as server-sent events, or over a WebSocket. All
//! three read the event store with the same cursor, so none loses or repeats an event; `last_event` only says when to look again.

use std::{convert::Infallible, time::Duration};

use axum::{
    Json,
    extract::{
        State,
        ws::{Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::{
        IntoResponse, Response,
        sse::{self, Sse},
    },
};
use futures::{Stream, StreamExt, stream};
use hyper::{HeaderMap, StatusCode, header::ACCEPT};
use serde::Deserialize;
use tokio::{sync::watch, time::Instant};
use utoipa::IntoParams;

use crate::{
    app::App,
    input::Params,
    page::{self, Page},
    problem::{Problem, ProblemView},
    views::event::EventView,
};
use swell_model::event::{Event, EventSeq, Subject};
use swell_raft::{EventStore, EventsError};

/// How many events one read takes.
const READ_EVENTS: usize = 256;
/// How many events one page looks at, for a filter that few of them pass.
const LOOKED_AT_MAX: usize = 10_000;
/// How many subjects one filter names.
const SUBJECTS_MAX: usize = 32;
/// How long a client's WebSocket may take to accept a frame.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Only events after this one, such as `120.3`; `0.0` for all that are kept. Streams begin with what happens from now on
    /// unless given (or `Last-Event-ID` is), pages with the oldest.
    after: Option<String>,
    /// Only about these, separated by commas: `rollout/r7`, or all of a kind: `build/`.
    subject: Option<String>,
    /// Pages only: where the page begins; the same as `after`.
    cursor: Option<String>,
    /// Pages only: how many items, 1 to 500; 50 unless given.
    limit: Option<usize>,
}

/// Which subjects are wanted; none named: all.
#[derive(Debug, Clone, Default)]
pub struct Wanted(Vec<String>);

impl Wanted {
    /// The filter that `text` says.
    fn parse(text: Option<&str>) -> Result<Self, Problem> {
        let subjects: Vec<String> = text.into_iter().flat_map(|text| text.split(',')).map(str::to_owned).collect();
        let good = |subject: &String| subject == "cluster" || subject.split_once('/').is_some_and(|(kind, _)| !kind.is_empty());
        if subjects.len() > SUBJECTS_MAX || !subjects.iter().all(good) {
            let hint = format!("write up to {SUBJECTS_MAX} of `rollout/r7`, `build/`, `cluster`, separated by commas");
            return Err(Problem::invalid("`subject` is not a filter", hint));
        }
        Ok(Self(subjects))
    }

    fn has(&self, event: &Event) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let subject = event.subject.to_string();
        self.0.iter().any(|wanted| if wanted.ends_with('/') { subject.starts_with(wanted.as_str()) } else { subject == *wanted })
    }
}

/// Events: as server-sent events (`Accept: text/event-stream`), over a WebSocket (an upgrade), or else one page. Streams send a
/// `cursor` at the beginning and while nothing comes, so that a client resumes where it really was. A cursor older than what is
/// kept is answered with 410 and the present one.
#[utoipa::path(
    get, path = "/v1/events", tag = "events",
    params(EventQuery),
    responses((status = OK, body = Page<EventView>), (status = GONE, body = ProblemView)),
)]
pub async fn events(
    State(app): State<App>,
    Params(query): Params<EventQuery>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let wanted = Wanted::parse(query.subject.as_deref())?;
    let last_id = headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty()).map(str::to_owned);
    let after: Option<EventSeq> = page::cursor(&last_id.or(query.after).or(query.cursor))?;
    let streams = headers.get(ACCEPT).and_then(|kind| kind.to_str().ok()).is_some_and(|kind| kind.contains("text/event-stream"));
    if upgrade.is_err() && !streams {
        return one_page(&app, after, wanted, query.limit).await.map(IntoResponse::into_response);
    }
    let feed = Feed::start(app, after, wanted).await?;
    match upgrade {
        Ok(upgrade) => Ok(upgrade.max_message_size(4096).on_upgrade(move |socket| over_websocket(socket, feed))),
        Err(_) => Ok(over_sse(feed)),
    }
}

async fn one_page(
    app: &App,
    after: Option<EventSeq>,
    wanted: Wanted,
    limit: Option<usize>,
) -> Result<Json<Page<EventView>>, Problem> {
    let limit = page::limit(limit)?;
    let events = app.node.events();
    app.read(move |view| {
        let mut cursor = match after {
            Some(after) => after,
            // Without a cursor a page begins with the oldest event that is kept.
            None => match events.range(EventSeq::default(), 1) {
                Err(EventsError::Gone { resume_after, .. }) => resume_after,
                _ => EventSeq::default(),
            },
        };
        let (mut items, mut looked_at) = (Vec::new(), 0);
        loop {
            let found = read(&events, cursor)?;
            let is_last = found.is_empty();
            for event in found {
                cursor = event.seq;
                looked_at += 1;
                if wanted.has(&event) {
                    items.push(EventView::from(event));
                }
                if items.len() >= limit || looked_at >= LOOKED_AT_MAX {
                    break;
                }
            }
            if is_last || items.len() >= limit || looked_at >= LOOKED_AT_MAX {
                let next = (!is_last && cursor < events.last()).then(|| cursor.to_string());
                return Ok(Json(Page { items, next, as_of: view.applied() }));
            }
        }
    })
    .await
}

/// The events after `after`, or 410 with the present cursor where they are not kept.
fn read(events: &EventStore, after: EventSeq) -> Result<Vec<Event>, Problem> {
    events.range(after, READ_EVENTS).map_err(|error| match error {
        EventsError::Gone { .. } => {
            let hint = "read what there is now, then follow from `cursor`";
            Problem::new(StatusCode::GONE, "cursor_too_old", error.to_string(), hint).cursor(events.last())
        }
        EventsError::Storage(error) => Problem::internal(error),
    })
}

/// What a stream carries.
enum Item {
    Event(Box<EventView>),
    /// Everything up to here was looked at.
    Cursor(EventSeq),
    /// The stream cannot go on; the client should ask again.
    End(Problem),
}

/// One client's place in the log.
struct Feed {
    app: App,
    wanted: Wanted,
    /// Everything up to here was sent, or is not wanted.
    cursor: EventSeq,
    newest: watch::Receiver<EventSeq>,
    heartbeat_at: Instant,
}

impl Feed {
    async fn start(app: App, after: Option<EventSeq>, wanted: Wanted) -> Result<Self, Problem> {
        let mut newest = app.node.last_event();
        let cursor = after.unwrap_or(*newest.borrow_and_update());
        let events = app.node.events();
        app.read(move |_| read(&events, cursor)).await?;
        let heartbeat_at = Instant::now() + app.options.heartbeat;
        Ok(Self { app, wanted, cursor, newest, heartbeat_at })
    }

    /// The items one after the other, without end.
    fn items(self) -> impl Stream<Item = Item> + Send {
        let first = Item::Cursor(self.cursor);
        let later = stream::unfold(Some(self), |feed| async move {
            let mut feed = feed?;
            match feed.next().await {
                Ok(items) => Some((items, Some(feed))),
                Err(problem) => Some((vec![Item::End(problem)], None)),
            }
        });
        stream::iter([first]).chain(later.flat_map(stream::iter))
    }

    /// What follows the cursor; waits until something does, or until it is time to say that nothing did.
    async fn next(&mut self) -> Result<Vec<Item>, Problem> {
        loop {
            // Before the look, so that what is applied during it is not slept through.
            self.newest.mark_unchanged();
            let (cursor, wanted, events) = (self.cursor, self.wanted.clone(), self.app.node.events());
            let (events, seen) = self
                .app
                .read(move |_| {
                    let events = read(&events, cursor)?;
                    let seen = events.last().map(|event| event.seq);
                    Ok((events.into_iter().filter(|event| wanted.has(event)).collect::<Vec<_>>(), seen))
                })
                .await?;
            self.cursor = seen.unwrap_or(self.cursor);
            if !events.is_empty() {
                self.heartbeat_at = Instant::now() + self.app.options.heartbeat;
                return Ok(events.into_iter().map(|event| Item::Event(Box::new(event.into()))).collect());
            }
            if seen.is_some() && Instant::now() < self.heartbeat_at {
                continue;
            }
            match tokio::time::timeout_at(self.heartbeat_at, self.newest.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    let hint = "ask another server, with the same cursor";
                    return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopped", "this server stops", hint));
                }
                Err(_) => {
                    self.heartbeat_at = Instant::now() + self.app.options.heartbeat;
                    return Ok(vec![Item::Cursor(self.cursor)]);
                }
            }
        }
    }
}

fn over_sse(feed: Feed) -> Response {
    let frames = feed.items().map(|item| {
        let frame = match item {
            Item::Event(event) => sse::Event::default().id(&event.seq).event("event").json_data(&*event),
            // An `id` of its own moves the client's `Last-Event-ID` past what it did not want.
            Item::Cursor(seq) => Ok(sse::Event::default().id(seq.to_string()).event("cursor").data(seq.to_string())),
            Item::End(problem) => sse::Event::default().event("problem").json_data(&problem),
        };
        Ok::<_, Infallible>(frame.unwrap_or_else(|error| sse::Event::default().event("problem").data(error.to_string())))
    });
    let mut response = Sse::new(frames).into_response();
    // Proxies that buffer would hold events back.
    response.headers_mut().insert("x-accel-buffering", hyper::header::HeaderValue::from_static("no"));
    response
}

/// Text frames: `{"event": …}`, `{"cursor": "120.3"}`, `{"problem": …}`. What the client says is read for its close alone.
async fn over_websocket(mut socket: WebSocket, feed: Feed) {
    let items = feed.items();
    let mut items = std::pin::pin!(items);
    loop {
        let item = tokio::select! {
            item = items.next() => item,
            said = socket.recv() => match said {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
        };
        let Some(item) = item else { return };
        let frame = match &item {
            Item::Event(event) => serde_json::json!({ "event": event }),
            Item::Cursor(seq) => serde_json::json!({ "cursor": seq }),
            Item::End(problem) => serde_json::json!({ "problem": problem }),
        };
        let sent = tokio::time::timeout(SEND_TIMEOUT, socket.send(Message::text(frame.to_string()))).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// The newest events about `subject`, oldest first.
pub fn about(events: &EventStore, subject: &Subject) -> Result<Vec<EventView>, Problem> {
    const SHOWN_MAX: usize = 200;
    let newest = events.by_subject(subject, None, true, SHOWN_MAX).map_err(Problem::internal)?;
    Ok(newest.into_iter().rev().map(EventView::from).collect())
}
