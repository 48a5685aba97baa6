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
    event_tail::EncodedEvent,
    input::Params,
    page::{self, Page},
    problem::{Problem, ProblemView},
    views::event::EventView,
};
use swell_model::{
    cluster::Cluster,
    digest::Digest,
    event::{Event, EventSeq},
    tables::{Key, ReadTables, Scan},
};
use swell_raft::View;

/// How many events are read from state at once.
const READ_EVENTS_MAX: usize = 256;
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
    app.read(move |view| {
        if let Some(after) = after {
            check_kept(view, after)?;
        }
        let scan = page::scan(Key::all(), after.map(EventSeq::key));
        let (events, last) = page::collect(view, scan, limit, |event| filter.matches(event))?;
        let items = events.into_iter().map(EventView::from).collect();
        Ok(Json(Page { items, next: last.map(|last: Event| last.seq.to_string()), as_of: view.applied() }))
    })
    .await
}

/// Refuses a cursor after which events were deleted. The first event of a cluster has no predecessor.
pub fn check_kept(view: &View, after: EventSeq) -> Result<(), Problem> {
    let oldest: Vec<Event> = view.scan(&Scan::all(), 1)?;
    let Some(oldest) = oldest.first().filter(|oldest| oldest.seq > after && oldest.previous != Digest([0; 32])) else {
        return Ok(());
    };
    let last = view.get::<Cluster>(&Key::all())?.unwrap_or_default().last_event;
    let detail = format!("events before {} were deleted", oldest.seq);
    let hint = "read the current state, then follow events from `cursor`";
    Err(Problem::new(StatusCode::GONE, "cursor_too_old", detail, hint).cursor(last))
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

/// The events about `subject` since `since`, oldest first: the newest 200 among the cluster's newest 20,000 events.
pub fn about(
    view: &View,
    subject: &swell_model::event::Subject,
    since: swell_model::units::Timestamp,
) -> Result<Vec<EventView>, Problem> {
    const KEPT_MAX: usize = 200;
    const LOOKED_AT_MAX: usize = 20_000;
    let mut scan = Scan::all().backwards();
    let mut found: Vec<EventView> = Vec::new();
    let mut looked_at = 0;
    'looking: loop {
        let events: Vec<Event> = view.scan(&scan, READ_EVENTS_MAX)?;
        let Some(oldest) = events.last() else { break };
        scan.after = Some(oldest.seq.key());
        for event in events {
            looked_at += 1;
            if event.at < since || looked_at > LOOKED_AT_MAX || found.len() >= KEPT_MAX {
                break 'looking;
            }
            if event.subject == *subject {
                found.push(event.into());
            }
        }
    }
    found.reverse();
    Ok(found)
}
