//! Following the event log: whoever follows sees every event once and in order, because it reads them from state. The live signal
//! only says that there are more.

use tokio::sync::watch;

use swell_model::{
    event::{Event, EventSeq},
    tables::{ReadTables, Scan, TablesError},
};
use swell_raft::Node;

/// How many events one read returns at the most.
const EVENTS_AT_ONCE: usize = 1000;

/// A place in the event log.
pub(super) struct Follower {
    node: Node,
    last: watch::Receiver<EventSeq>,
    seen: EventSeq,
}

impl Follower {
    /// Follows from now on: the next events are those after the last one that `node` has applied.
    pub fn from_now(node: Node) -> Self {
        let mut last = node.last_event();
        let seen = *last.borrow_and_update();
        Self { node, last, seen }
    }

    /// Waits until there are events that were not seen, and returns them: at most [`EVENTS_AT_ONCE`]. None when the node stopped.
    pub async fn next(&mut self) -> Option<Result<Vec<Event>, TablesError>> {
        loop {
            let node = self.node.clone();
            let scan = Scan::all().after(self.seen.key());
            let read = tokio::task::spawn_blocking(move || node.view().scan::<Event>(&scan, EVENTS_AT_ONCE)).await.ok()?;
            match read {
                Ok(events) if events.is_empty() => self.last.changed().await.ok()?,
                Ok(events) => {
                    self.seen = events.last().map_or(self.seen, |event| event.seq);
                    return Some(Ok(events));
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
