//! Updates as they arrive: frames are joined, complete updates are put in force. Knows nothing of connections.

use crate::table::TableHandle;
use swell_model::{
    rollout::assignment::Generation,
    routing::update::{RouteUpdate, UPDATE_FRAMES_MAX, UpdateError},
};

/// What became of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Applied {
    /// More frames of the update follow.
    Incomplete,
    /// Requests are routed by the table of this generation from now on.
    Complete(Generation),
    /// The update does not fit the table in force: the whole table would.
    SnapshotWanted(UpdateError),
}

/// The update that is arriving.
pub(super) struct Updates {
    table: TableHandle,
    partial: Option<RouteUpdate>,
    frames: usize,
}

impl Updates {
    pub fn new(table: TableHandle) -> Self {
        Self { table, partial: None, frames: 0 }
    }

    /// Takes the next frame.
    ///
    /// # Errors
    /// When the server is behind this gateway, or even a whole table cannot be applied: another server is needed.
    pub async fn take(&mut self, frame: RouteUpdate) -> Result<Applied, UpdateError> {
        self.frames += 1;
        if self.frames > UPDATE_FRAMES_MAX {
            return Err(UpdateError::Frames { to: frame.to });
        }
        let update = match self.partial.take() {
            None => frame,
            Some(mut partial) => {
                partial.add_frame(frame)?;
                partial
            }
        };
        if update.more {
            self.partial = Some(update);
            return Ok(Applied::Incomplete);
        }
        self.frames = 0;
        let (generation, changed, is_snapshot) = (update.to, update.services.len(), update.from.is_none());
        let table = self.table.clone();
        // Takes milliseconds for a large table: not on a thread that forwards requests.
        match tokio::task::spawn_blocking(move || table.update(update)).await {
            Ok(Ok(())) => {
                tracing::debug!(%generation, changed, is_snapshot, "routes updated");
                Ok(Applied::Complete(generation))
            }
            Ok(Err(error)) if error.needs_snapshot() && !is_snapshot => Ok(Applied::SnapshotWanted(error)),
            Ok(Err(error)) => Err(error),
            // The task panicked or the runtime stops.
            Err(_) => Err(UpdateError::Frames { to: generation }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tests::support::{instance, route, table};

    fn handle() -> TableHandle {
        TableHandle::new("a".into(), Default::default())
    }

    #[tokio::test]
    async fn update_is_in_force_only_when_complete() {
        let handle = handle();
        let mut updates = Updates::new(handle.clone());
        let service = |number| route(&format!("shop/prod/web-{number}"), vec![instance(([127, 0, 0, 1], 9).into(), "a")]);
        let whole = table(3, (0..50).map(service).collect());
        let mut frames = RouteUpdate::snapshot(&whole).into_frames(10_000);
        let last = frames.pop().unwrap();
        assert!(!frames.is_empty());
        for frame in frames {
            assert_eq!(updates.take(frame).await, Ok(Applied::Incomplete));
            assert_eq!(handle.generation(), Generation::default());
        }
        assert_eq!(updates.take(last).await, Ok(Applied::Complete(whole.generation)));
        assert_eq!(*handle.load().source, whole);
    }

    #[tokio::test]
    async fn update_that_does_not_fit_asks_for_snapshot_once() {
        let mut updates = Updates::new(handle());
        let target = table(5, vec![route("shop/prod/web", vec![])]);
        let delta = RouteUpdate { from: Some(table(4, vec![]).generation), ..RouteUpdate::snapshot(&target) };
        assert!(matches!(updates.take(delta).await, Ok(Applied::SnapshotWanted(UpdateError::Gap { .. }))));
        let wrong = RouteUpdate { hash: table(1, vec![]).hash(), ..RouteUpdate::snapshot(&target) };
        assert!(matches!(updates.take(wrong).await, Err(UpdateError::HashDiffers { .. })));
        assert_eq!(updates.take(RouteUpdate::snapshot(&target)).await, Ok(Applied::Complete(target.generation)));
    }

    #[tokio::test]
    async fn endless_update_is_given_up() {
        let mut updates = Updates::new(handle());
        let frame = RouteUpdate { more: true, ..RouteUpdate::snapshot(&table(3, vec![])) };
        for _ in 0..UPDATE_FRAMES_MAX {
            assert_eq!(updates.take(frame.clone()).await, Ok(Applied::Incomplete));
        }
        assert!(updates.take(frame).await.is_err());
    }
}
