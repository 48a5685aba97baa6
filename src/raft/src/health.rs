//! Whether the node runs, or why it stopped. The first reason counts: later ones are its consequences.

use std::{fmt, io};

use tokio::sync::watch;

use swell_storage::StorageError;

/// Shared by everything that can stop the node.
#[derive(Debug)]
pub struct Health {
    stopped: watch::Sender<Option<String>>,
}

impl Health {
    pub fn new() -> Self {
        Self { stopped: watch::Sender::new(None) }
    }

    /// Stops the node. Whatever met the error is not acknowledged.
    pub fn stop(&self, why: &impl fmt::Display) {
        self.stopped.send_if_modified(|stopped| {
            let first = stopped.is_none();
            if first {
                let why = why.to_string();
                tracing::error!(%why, "server stopped taking part in the cluster");
                *stopped = Some(why);
            }
            first
        });
    }

    /// Stops the node, and returns openraft's kind of error.
    pub fn stopped_by(&self, error: StorageError) -> io::Error {
        self.stop(&error);
        error.into()
    }

    /// Waits until the node stops, and returns why.
    pub async fn until_stopped(&self) -> String {
        let mut stopped = self.stopped.subscribe();
        let why = stopped.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        // The sender is our own field, so the wait does not fail.
        why.unwrap_or_default()
    }

    /// Why the node stopped, if it did.
    pub fn stopped(&self) -> Option<String> {
        self.stopped.borrow().clone()
    }
}
