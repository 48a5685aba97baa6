//! Live streams of events, all served from one shared tail: an event is encoded once, and a stream that keeps up never reads the
//! database. A stream that is further behind reads the event store, under a limit of its own, until the tail serves it.
//! Knows nothing of how events are framed.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::{
    sync::{Semaphore, watch},
    task::AbortHandle,
    time::Instant,
};

use super::{
    app::App,
    problem::Problem,
    resources::events::{read_events, read_subject},
    views::event::EventView,
};
use hyper::StatusCode;
use swell_model::{
    cluster::Cluster,
    event::{Event, EventSeq, Subject},
    tables::{Key, ReadTables},
};
use swell_projections::event_tail::{EncodedEvent, EventTail, Read};
use swell_raft::{FeedItem, Node};

/// Bounds of the tail: some minutes of a busy cluster.
const TAIL_EVENTS_MAX: usize = 50_000;
const TAIL_BYTES_MAX: usize = 32 << 20;
/// How many events one read returns.
const READ_EVENTS_MAX: usize = 256;
/// How many streams read the database at the same time; the others wait in turn. Few, so that hundreds of streams that start at the
/// oldest event cannot starve requests of processors or blocking threads.
const CATCH_UP_READS_MAX: usize = 2;
/// How many subjects one filter names.
const SUBJECTS_MAX: usize = 32;

/// The tail that all streams share, kept up to date from the change feed.
#[derive(Clone)]
pub struct EventStreams(Arc<Streams>);

struct Streams {
    tail: Arc<Tail>,
    catch_up: Semaphore,
    follower: AbortHandle,
}

struct Tail {
    /// None until the feed's first item.
    events: RwLock<Option<EventTail>>,
    /// The newest event in the tail. Receivers see it change after the tail serves the event.
    newest: watch::Sender<EventSeq>,
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl EventStreams {
    /// Follows the change feed of `node` until the last clone is dropped. Needs a tokio runtime.
    pub fn start(node: Node) -> Self {
        let newest = watch::Sender::new(*node.last_event().borrow());
        let tail = Arc::new(Tail { events: RwLock::new(None), newest });
        let follower = tokio::spawn(follow(node, Arc::clone(&tail))).abort_handle();
        Self(Arc::new(Streams { tail, catch_up: Semaphore::new(CATCH_UP_READS_MAX), follower }))
    }
}

async fn follow(node: Node, tail: Arc<Tail>) {
    let mut changes = node.changes();
    while let Some(item) = changes.next().await {
        match item {
            FeedItem::StartOver(view) => {
                let read = tokio::task::spawn_blocking(move || view.get::<Cluster>(&Key::all())).await;
                let last = match read {
                    Ok(Ok(cluster)) => cluster.unwrap_or_default().last_event,
                    Ok(Err(error)) => {
                        // Streams read the database until the feed starts over.
                        tracing::error!(%error, "failed to start the event tail");
                        tail.set(None);
                        continue;
                    }
                    Err(_) => return,
                };
                tail.set(Some(EventTail::new(last, TAIL_EVENTS_MAX, TAIL_BYTES_MAX, encode)));
                tail.newest.send_replace(last);
            }
            FeedItem::Applied(batch) => {
                if let Some(events) = tail.events.write().unwrap_or_else(PoisonError::into_inner).as_mut() {
                    events.update(&batch);
                }
                if let Some(last) = batch.events.last() {
                    tail.newest.send_replace(last.seq);
                }
            }
        }
    }
}

/// The JSON that streams send of an event.
fn encode(event: &Event) -> Vec<u8> {
    // Names, numbers and strings: nothing in it can fail to serialize.
    serde_json::to_vec(&EventView::from(event.clone())).unwrap_or_default()
}

impl Tail {
    fn set(&self, events: Option<EventTail>) {
        *self.events.write().unwrap_or_else(PoisonError::into_inner) = events;
    }
}

/// The subjects that a client wants; without any, all events.
#[derive(Debug, Clone, Default)]
pub struct SubjectFilter {
    wanted: Vec<String>,
    /// The only subject wanted, if it is a single one: the tail has an index of it.
    only: Option<Subject>,
}

impl SubjectFilter {
    /// Parses `rollout/r7,build/,cluster`: subjects, or kinds that end in a slash.
    pub fn parse(text: Option<&str>) -> Result<Self, Problem> {
        let wanted: Vec<String> = text.into_iter().flat_map(|text| text.split(',')).map(str::to_owned).collect();
        let is_valid =
            |subject: &String| subject == "cluster" || subject.split_once('/').is_some_and(|(kind, _)| !kind.is_empty());
        if wanted.len() > SUBJECTS_MAX || !wanted.iter().all(is_valid) {
            let hint = format!("write up to {SUBJECTS_MAX} of `rollout/r7`, `build/`, `cluster`, separated by commas");
            return Err(Problem::invalid("`subject` is not a filter of subjects", hint));
        }
        let only = match wanted.as_slice() {
            [only] => subject(only),
            _ => None,
        };
        Ok(Self { wanted, only })
    }

    /// The subject, if the filter names exactly one: the tail and the event store have an index of it.
    pub fn only(&self) -> Option<&Subject> {
        self.only.as_ref()
    }

    /// Whether the event is about one of the subjects.
    pub fn matches(&self, event: &Event) -> bool {
        if self.wanted.is_empty() {
            return true;
        }
        let subject = event.subject.to_string();
        let is_wanted =
            |wanted: &String| if wanted.ends_with('/') { subject.starts_with(wanted.as_str()) } else { subject == *wanted };
        self.wanted.iter().any(is_wanted)
    }
}

/// The subject of builds and rollouts, which most streams follow.
fn subject(text: &str) -> Option<Subject> {
    match text.split_once('/')? {
        ("build", id) => Some(Subject::Build(id.parse().ok()?)),
        ("rollout", id) => Some(Subject::Rollout(id.parse().ok()?)),
        ("pipeline", name) => Some(Subject::Pipeline(name.parse().ok()?)),
        ("environment", name) => Some(Subject::Environment(name.parse().ok()?)),
        ("target", name) => Some(Subject::Target(name.parse().ok()?)),
        _ => None,
    }
}

/// An item of an event stream.
pub enum StreamItem {
    Event(EncodedEvent),
    /// Everything up to here was sent, or is not wanted.
    Cursor(EventSeq),
    /// The stream ends; the client may reconnect.
    End(Problem),
}

/// One client's position in the event log.
pub struct EventStream {
    app: App,
    filter: SubjectFilter,
    /// Everything up to here was sent, or is not wanted.
    cursor: EventSeq,
    newest: watch::Receiver<EventSeq>,
    heartbeat_at: Instant,
}

impl EventStream {
    /// A stream of the events after `after`; without it, of those from now on. Fails if events after it were deleted.
    pub async fn start(app: App, after: Option<EventSeq>, filter: SubjectFilter) -> Result<Self, Problem> {
        let newest = app.events.0.tail.newest.subscribe();
        // The tail may be a moment behind state: a client that has just made a change does not want to see it again.
        let cursor = after.unwrap_or(*app.node.last_event().borrow());
        let heartbeat_at = Instant::now() + app.options.heartbeat;
        let stream = Self { app, filter, cursor, newest, heartbeat_at };
        if stream.read_tail().is_none() {
            let permit = stream.catch_up_permit().await?;
            let events = stream.app.node.events();
            stream.app.read(move |_| read_events(&events, cursor, 1).map(drop)).await?;
            drop(permit);
        }
        Ok(stream)
    }

    /// Where the stream begins or stands.
    pub fn cursor(&self) -> EventSeq {
        self.cursor
    }

    /// The next items; waits until there are some, or until a heartbeat is due.
    pub async fn next(&mut self) -> Result<Vec<StreamItem>, Problem> {
        loop {
            // Before the read, so that an event that comes during it is not missed.
            self.newest.mark_unchanged();
            let (events, read_up_to) = match self.read_tail() {
                Some(read) => read,
                None => self.read_state().await?,
            };
            let has_advanced = read_up_to.is_some_and(|seq| seq > self.cursor);
            self.cursor = read_up_to.unwrap_or(self.cursor).max(self.cursor);
            if !events.is_empty() {
                self.heartbeat_at = Instant::now() + self.app.options.heartbeat;
                return Ok(events.into_iter().map(StreamItem::Event).collect());
            }
            if has_advanced && Instant::now() < self.heartbeat_at {
                continue;
            }
            match tokio::time::timeout_at(self.heartbeat_at, self.newest.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    let hint = "follow events at another server, with the same cursor";
                    return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopped", "the server is stopping", hint));
                }
                Err(_) => {
                    self.heartbeat_at = Instant::now() + self.app.options.heartbeat;
                    return Ok(vec![StreamItem::Cursor(self.cursor)]);
                }
            }
        }
    }

    /// The wanted events after the cursor and how far was read; none if the tail does not reach back to the cursor.
    fn read_tail(&self) -> Option<(Vec<EncodedEvent>, Option<EventSeq>)> {
        let events = self.app.events.0.tail.events.read().unwrap_or_else(PoisonError::into_inner);
        let tail = events.as_ref()?;
        if let Some(only) = &self.filter.only {
            let Read::Events(events) = tail.read_subject(only, self.cursor, READ_EVENTS_MAX) else { return None };
            let is_all = events.len() < READ_EVENTS_MAX;
            let read_up_to = if is_all { Some(tail.last()) } else { events.last().map(|kept| kept.event.seq) };
            return Some((events, read_up_to));
        }
        let Read::Events(mut events) = tail.read(self.cursor, READ_EVENTS_MAX) else { return None };
        let read_up_to = events.last().map(|kept| kept.event.seq);
        events.retain(|kept| self.filter.matches(&kept.event));
        Some((events, read_up_to))
    }

    /// The same from the database, where few streams read at a time.
    async fn read_state(&self) -> Result<(Vec<EncodedEvent>, Option<EventSeq>), Problem> {
        let permit = self.catch_up_permit().await?;
        let (cursor, filter, events) = (self.cursor, self.filter.clone(), self.app.node.events());
        let read = self.app.read(move |_| {
            let newest = events.last();
            let found = match filter.only() {
                Some(only) => read_subject(&events, only, cursor, READ_EVENTS_MAX)?,
                None => read_events(&events, cursor, READ_EVENTS_MAX)?,
            };
            let last = found.last().map(|event| event.seq);
            // All of a subject's events up to `newest` were found, unless there may be more.
            let is_all = filter.only().is_some() && found.len() < READ_EVENTS_MAX;
            let read_up_to = if is_all { Some(last.map_or(newest, |last| last.max(newest))) } else { last };
            let wanted = found.into_iter().filter(|event| filter.matches(event));
            let encoded = wanted.map(|event| EncodedEvent { encoded: encode(&event).into(), event: Arc::new(event) });
            Ok((encoded.collect(), read_up_to))
        });
        let read = read.await;
        drop(permit);
        read
    }

    async fn catch_up_permit(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Problem> {
        // Never closed while a stream holds the app.
        self.app.events.0.catch_up.acquire().await.map_err(Problem::internal)
    }
}
