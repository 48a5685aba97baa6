//! Whether the node still runs, and why not. The first reason counts: what follows is its consequence.

use std::{fmt, io};

use tokio::sync::watch;

use swell_storage::StorageError;

/// Shared by everything that may have to stop the node.
#[derive(Debug)]
pub struct Health {
    stopped: watch::Sender<Option<String>>,
}

impl Health {
    pub fn new() -> Self {
        Self { stopped: watch::Sender::new(None) }
    }

    /// Stops the node. Nothing of what met the error is acknowledged.
    pub fn stop(&self, why: &impl fmt::Display) {
        self.stopped.send_if_modified(|stopped| {
            let first = stopped.is_none();
            if first {
                let why = why.to_string();
                tracing::error!(why, "this server steps aside");
                *stopped = Some(why);
            }
            first
        });
    }

    /// Stops the node, and gives openraft its kind of error.
    pub fn stopped_by(&self, error: StorageError) -> io::Error {
        self.stop(&error);
        error.into()
    }

    /// Waits until it stops; why it did.
    pub async fn until_stopped(&self) -> String {
        let mut stopped = self.stopped.subscribe();
        let why = stopped.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        // The sender is our own field, so the wait does not fail.
        why.unwrap_or_default()
    }

    /// Why it stopped, if it did.
    pub fn stopped(&self) -> Option<String> {
        self.stopped.borrow().clone()
    }
}
