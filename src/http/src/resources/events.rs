//! `/v1/events`: the event log in pages, as server-sent events, or over a WebSocket, all with the same cursors.

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
use utoipa::IntoParams;

use crate::{
    app::App,
    event_stream::{EventStream, StreamItem, SubjectFilter},
    input::Params,
    page::{self, Page},
    problem::{Problem, ProblemView},
    views::event::EventView,
};
use swell_model::event::{Event, EventSeq, Subject};
use swell_projections::event_tail::EncodedEvent;
use swell_raft::{EventStore, EventsError};

/// How many events one read of a page returns.
const READ_EVENTS_MAX: usize = 256;
/// How many events one page decodes, for a filter that few of them match. The page may then be short, with a cursor.
const DECODED_MAX: usize = 2000;
/// How many events about one build or rollout are shown with it.
const ABOUT_MAX: usize = 200;
/// How long a WebSocket client may take to accept a frame.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Filters and position of an event list or stream.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Returns only events after this one, such as `120.3`; `0.0` starts with the oldest. Without it, a stream starts with the
    /// next event (or after `Last-Event-ID`), and a page with the oldest.
    after: Option<String>,
    /// Returns only events about these subjects, separated by commas: `rollout/r7`, or all of a kind: `build/`.
    subject: Option<String>,
    /// Pages only: `next` of the previous page. Cannot be combined with `after`.
    cursor: Option<String>,
    /// Pages only: number of items, 1 to 500. Default: 50.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
}

/// Lists events, or follows them: as server-sent events (`Accept: text/event-stream`), over a WebSocket (an upgrade), or else as a
/// page. Streams send a `cursor` at the start and as a heartbeat, from which a client can resume. A cursor after which events were
/// deleted fails with 410 and the current one.
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
    let filter = SubjectFilter::parse(query.subject.as_deref())?;
    if query.after.is_some() && query.cursor.is_some() {
        let hint = "send `after` for the first page, then only `cursor`, with `next` of the previous page";
        return Err(Problem::invalid("`after` and `cursor` are both given", hint));
    }
    let last_id = headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty()).map(str::to_owned);
    let after: Option<EventSeq> = page::cursor(&last_id.or(query.after).or(query.cursor))?;
    let streams = headers.get(ACCEPT).and_then(|kind| kind.to_str().ok()).is_some_and(|kind| kind.contains("text/event-stream"));
    if upgrade.is_err() && !streams {
        return one_page(&app, after, filter, query.limit).await.map(IntoResponse::into_response);
    }
    let stream = EventStream::start(app, after, filter).await?;
    match upgrade {
        Ok(upgrade) => Ok(upgrade.max_message_size(4096).on_upgrade(move |socket| over_websocket(socket, stream))),
        Err(_) => Ok(over_sse(stream)),
    }
}

async fn one_page(
    app: &App,
    after: Option<EventSeq>,
    filter: SubjectFilter,
    limit: Option<usize>,
) -> Result<Json<Page<EventView>>, Problem> {
    let limit = page::limit(limit)?;
    let events = app.node.events();
    app.read(move |view| {
        let mut cursor = match after {
            Some(after) => after,
            // Without a position, a page begins with the oldest event that is kept.
            None => match events.range(EventSeq::default(), 1) {
                Err(EventsError::Gone { resume_after, .. }) => resume_after,
                _ => EventSeq::default(),
            },
        };
        if let Some(subject) = filter.only() {
            let found = read_subject(&events, subject, cursor, limit)?;
            let next = found.last().filter(|_| found.len() >= limit).map(|event| event.seq.to_string());
            return Ok(Json(Page { items: found.into_iter().map(EventView::from).collect(), next, as_of: view.applied() }));
        }
        let (mut items, mut decoded) = (Vec::new(), 0);
        loop {
            let found = read_events(&events, cursor, READ_EVENTS_MAX)?;
            let is_last = found.is_empty();
            for event in found {
                cursor = event.seq;
                decoded += 1;
                if filter.matches(&event) {
                    items.push(EventView::from(event));
                }
                if items.len() >= limit || decoded >= DECODED_MAX {
                    break;
                }
            }
            if is_last || items.len() >= limit || decoded >= DECODED_MAX {
                let next = (!is_last && cursor < events.last()).then(|| cursor.to_string());
                return Ok(Json(Page { items, next, as_of: view.applied() }));
            }
        }
    })
    .await
}

/// Up to `limit` events after `after`, or 410 with the current cursor if they were deleted.
pub fn read_events(events: &EventStore, after: EventSeq, limit: usize) -> Result<Vec<Event>, Problem> {
    events.range(after, limit).map_err(|error| problem(events, error))
}

/// The same of one subject, from the index of subjects.
pub fn read_subject(events: &EventStore, subject: &Subject, after: EventSeq, limit: usize) -> Result<Vec<Event>, Problem> {
    // The index alone does not tell whether events after `after` were deleted.
    read_events(events, after, 1)?;
    events.by_subject(subject, Some(after), false, limit).map_err(Problem::internal)
}

fn problem(events: &EventStore, error: EventsError) -> Problem {
    match error {
        EventsError::Gone { .. } => {
            let hint = "read the current state, then follow events from `cursor`";
            Problem::new(StatusCode::GONE, "cursor_too_old", error.to_string(), hint).cursor(events.last())
        }
        EventsError::Storage(error) => Problem::internal(error),
    }
}

/// The items of a stream, without end: first its cursor, so that a client knows where it starts.
fn items(stream: EventStream) -> impl Stream<Item = StreamItem> + Send {
    let first = StreamItem::Cursor(stream.cursor());
    let later = stream::unfold(Some(stream), |stream| async move {
        let mut stream = stream?;
        match stream.next().await {
            Ok(items) => Some((items, Some(stream))),
            Err(problem) => Some((vec![StreamItem::End(problem)], None)),
        }
    });
    stream::iter([first]).chain(later.flat_map(stream::iter))
}

fn over_sse(stream: EventStream) -> Response {
    let frames = items(stream).map(|item| {
        let frame = match item {
            StreamItem::Event(EncodedEvent { event, encoded }) => {
                Ok(sse::Event::default().id(event.seq.to_string()).event("event").data(String::from_utf8_lossy(&encoded)))
            }
            // The `id` moves the client's `Last-Event-ID` past events that it does not want.
            StreamItem::Cursor(seq) => Ok(sse::Event::default().id(seq.to_string()).event("cursor").data(seq.to_string())),
            StreamItem::End(problem) => sse::Event::default().event("problem").json_data(&problem),
        };
        Ok::<_, Infallible>(frame.unwrap_or_else(|error| sse::Event::default().event("problem").data(error.to_string())))
    });
    let mut response = Sse::new(frames).into_response();
    // Keeps proxies from buffering events.
    response.headers_mut().insert("x-accel-buffering", hyper::header::HeaderValue::from_static("no"));
    response
}

/// Sends text frames: `{"event": …}`, `{"cursor": "120.3"}`, `{"problem": …}`. The client's frames are ignored, except a close.
async fn over_websocket(mut socket: WebSocket, stream: EventStream) {
    let items = items(stream);
    let mut items = std::pin::pin!(items);
    loop {
        let item = tokio::select! {
            item = items.next() => item,
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
        };
        let Some(item) = item else { return };
        let frame = match &item {
            StreamItem::Event(EncodedEvent { encoded, .. }) => format!("{{\"event\":{}}}", String::from_utf8_lossy(encoded)),
            StreamItem::Cursor(seq) => serde_json::json!({ "cursor": seq }).to_string(),
            StreamItem::End(problem) => serde_json::json!({ "problem": problem }).to_string(),
        };
        let sent = tokio::time::timeout(SEND_TIMEOUT, socket.send(Message::text(frame))).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// The newest events about `subject`, oldest first.
pub fn about(events: &EventStore, subject: &Subject) -> Result<Vec<EventView>, Problem> {
    let newest = events.by_subject(subject, None, true, ABOUT_MAX).map_err(Problem::internal)?;
    Ok(newest.into_iter().rev().map(EventView::from).collect())
}
