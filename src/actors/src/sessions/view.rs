//! What sessions read of state: projections kept up to date by one task that follows the change feed and tells the sessions whose desired
//! state may have changed.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::watch;

use super::table::SessionTable;
use crate::supervise::blocking;
use swell_model::{change::AppliedBatch, tables::TablesError};
use swell_projections::{assignments::Assignments, observations::Observations, presence::Presence, targets::Targets};
use swell_raft::{FeedItem, Node, View};

/// The projections that sessions read, as of one log index.
#[derive(Default)]
pub(super) struct Projections {
    pub targets: Targets,
    pub assignments: Assignments,
    pub observations: Observations,
    pub presence: Presence,
}

impl Projections {
    fn from_view(view: &View) -> Result<Self, TablesError> {
        Ok(Self {
            targets: Targets::from_tables(view)?,
            assignments: Assignments::from_tables(view, view.applied())?,
            observations: Observations::from_tables(view)?,
            presence: Presence::from_tables(view)?,
        })
    }
}

/// The present projections, shared by all sessions.
pub(super) struct FleetView {
    projections: RwLock<Projections>,
    /// Log index of the projections; 0 before they are built.
    applied: watch::Sender<u64>,
}

impl FleetView {
    pub fn new() -> Self {
        Self { projections: RwLock::default(), applied: watch::channel(0).0 }
    }

    pub fn read(&self) -> RwLockReadGuard<'_, Projections> {
        self.projections.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the projections show what was applied up to `index`.
    pub async fn shows(&self, index: u64) {
        // The sender is ours: it cannot be gone.
        self.applied.subscribe().wait_for(|applied| *applied >= index.max(1)).await.ok();
    }

    /// Keeps the projections up to date until the node stops.
    pub async fn follow(&self, node: Node, sessions: Arc<SessionTable>) -> Result<(), TablesError> {
        let mut feed = node.changes();
        while let Some(item) = feed.next().await {
            swell_system::crash::panic_point("fleet");
            let index = match item {
                FeedItem::StartOver(view) => {
                    let index = view.applied();
                    let Some(built) = blocking(move || Projections::from_view(&view)).await else { return Ok(()) };
                    *self.projections.write().unwrap_or_else(PoisonError::into_inner) = built?;
                    sessions.for_each(|_, outbox| outbox.desired_changed());
                    index
                }
                FeedItem::Applied(batch) => {
                    self.update(&batch, &node, &sessions)?;
                    batch.index
                }
            };
            self.applied.send_replace(index.max(1));
        }
        Ok(())
    }

    fn update(&self, batch: &AppliedBatch, node: &Node, sessions: &SessionTable) -> Result<(), TablesError> {
        let changed = {
            let mut projections = self.projections.write().unwrap_or_else(PoisonError::into_inner);
            projections.targets.update(batch);
            projections.observations.update(batch);
            projections.presence.update(batch);
            projections.assignments.update(batch, &node.view())?
        };
        sessions.desired_changed(&changed);
        Ok(())
    }
}
