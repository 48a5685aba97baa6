//! Following the event log: whoever follows sees every event once and in order, because it reads them from state. The live signal
//! only says that there are more.

use tokio::sync::watch;

use swell_model::event::{Event, EventSeq};
use swell_raft::{EventsError, Node};

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
    /// Events that this server never had, because it installed a snapshot, are passed over: actors compare with state now and then.
    pub async fn next(&mut self) -> Option<Result<Vec<Event>, EventsError>> {
        loop {
            let (events, seen) = (self.node.events(), self.seen);
            match tokio::task::spawn_blocking(move || events.range(seen, EVENTS_AT_ONCE)).await.ok()? {
                Ok(events) if events.is_empty() => self.last.changed().await.ok()?,
                Ok(events) => {
                    self.seen = events.last().map_or(self.seen, |event| event.seq);
                    return Some(Ok(events));
                }
                Err(EventsError::Gone { resume_after, .. }) => self.seen = resume_after,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
