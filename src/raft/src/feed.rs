//! The feed of applied changes: every batch once, in order, shared by all subscribers. Bounded: a subscriber that falls behind by more
//! than [`BATCHES_KEPT`] starts over from a view. Knows nothing of its subscribers.

use std::sync::Arc;

use tokio::sync::broadcast;

use super::{Node, View};
use swell_model::change::AppliedBatch;

/// Most batches that wait for the slowest subscriber.
const BATCHES_KEPT: usize = 1024;

/// An item of the feed before a subscriber's place in it is known.
#[derive(Debug, Clone)]
enum Published {
    Applied(Arc<AppliedBatch>),
    /// A snapshot took the place of state.
    Installed,
}

/// The publishing end, held by the state machine.
#[derive(Debug, Clone)]
pub(super) struct Publisher(broadcast::Sender<Published>);

impl Publisher {
    pub fn new() -> Self {
        Self(broadcast::Sender::new(BATCHES_KEPT))
    }

    /// Call after the batch was committed: a subscriber may read state as soon as it hears of it.
    pub fn applied(&self, batch: AppliedBatch) {
        if self.0.receiver_count() > 0 && !(batch.changes.is_empty() && batch.events.is_empty()) {
            // Fails only when the last subscriber left meanwhile.
            self.0.send(Published::Applied(Arc::new(batch))).ok();
        }
    }

    pub fn installed(&self) {
        self.0.send(Published::Installed).ok();
    }
}

/// One item of the feed.
pub enum FeedItem {
    /// Forget what was derived and derive it anew from this view; batches after it follow. Always the first item.
    StartOver(View),
    /// The batch that was applied next.
    Applied(Arc<AppliedBatch>),
}

/// A subscription to everything that this node applies.
pub struct ChangeFeed {
    node: Node,
    receiver: broadcast::Receiver<Published>,
    /// Log index up to which the subscriber knows state; `None` before the first item.
    seen: Option<u64>,
}

impl ChangeFeed {
    pub(super) fn new(node: Node, publisher: &Publisher) -> Self {
        let receiver = publisher.0.subscribe();
        Self { node, receiver, seen: None }
    }

    /// Waits for the next item; `None` once the node has stopped. Cancel safe.
    pub async fn next(&mut self) -> Option<FeedItem> {
        let Some(seen) = self.seen else { return Some(self.start_over()) };
        loop {
            match self.receiver.recv().await {
                // A view may show a batch before the batch arrives.
                Ok(Published::Applied(batch)) if batch.index <= seen => {}
                Ok(Published::Applied(batch)) => {
                    self.seen = Some(batch.index);
                    return Some(FeedItem::Applied(batch));
                }
                Ok(Published::Installed) => return Some(self.start_over()),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "subscriber of the change feed fell behind, starting over");
                    self.receiver = self.receiver.resubscribe();
                    return Some(self.start_over());
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    fn start_over(&mut self) -> FeedItem {
        let view = self.node.view();
        self.seen = Some(view.applied());
        FeedItem::StartOver(view)
    }
}
