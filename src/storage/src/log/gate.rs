//! Lets a test hold back the log's writer, so that entries are replicated and not yet on disk, and kill it there. For tests only.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// What the writer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Passage {
    /// Write and sync.
    #[default]
    Open,
    /// Wait before the next write.
    Held,
    /// End without writing what is queued.
    Dead,
}

/// Stands before every write of the log. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct WriterGate {
    inner: Arc<(Mutex<Passage>, Condvar)>,
}

impl WriterGate {
    /// Changes what the writer may do from its next write on.
    pub fn set(&self, passage: Passage) {
        *self.inner.0.lock().unwrap_or_else(PoisonError::into_inner) = passage;
        self.inner.1.notify_all();
    }

    /// Waits while the gate is held.
    pub(super) fn wait(&self) -> Passage {
        let passage = self.inner.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = self.inner.1.wait_while(passage, |passage| *passage == Passage::Held);
        *passed.unwrap_or_else(PoisonError::into_inner)
    }
}
