//! The node as everyone else sees it: propose, read, follow. For now it agrees with itself, in memory.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use futures::future::BoxFuture;
use serde::Serialize;
use tokio::sync::watch;

use super::Options;
use crate::{
    model::{
        apply::apply,
        command::{Command, Outcome},
        event::EventSeq,
        ports::{Proposal, ProposeError, Proposer},
        rejection::RuleError,
        tables::MemoryTables,
        units::Timestamp,
    },
    storage::View,
};

/// Why a node cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot keep anything in its folder.
    #[error("cannot use {path}: {cause}", path = path.display())]
    Storage {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong with it, and the way out.
        cause: String,
    },
    /// It stopped before.
    #[error("this server has stopped: {0}")]
    Stopped(String),
}

/// Who leads, as this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Leadership {
    /// The Raft term.
    pub term: u64,
    /// Whether this node believes that it leads. It may have been deposed already: safety rests on epochs.
    pub is_leader: bool,
    /// The leader, if one is known.
    pub leader: Option<u64>,
}

/// How the node is doing, for `swell status` and `doctor`.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Its number.
    pub node_id: u64,
    /// The Raft term.
    pub term: u64,
    /// The leader, if one is known.
    pub leader: Option<u64>,
    /// The index of the last log entry on this node's disk.
    pub last_log: Option<u64>,
    /// The index of the last log entry that was applied.
    pub applied: Option<u64>,
    /// The index of the last log entry that the newest snapshot covers.
    pub snapshot: Option<u64>,
    /// The size of the log's files, in bytes.
    pub log_bytes: u64,
    /// The size of the state's files, in bytes.
    pub state_bytes: u64,
    /// The size of the snapshots' files, in bytes.
    pub snapshot_bytes: u64,
    /// Why it stopped, if it did.
    pub stopped: Option<String>,
}

struct Memory {
    tables: Arc<MemoryTables>,
    index: u64,
}

struct Shared {
    options: Options,
    memory: Mutex<Memory>,
    last_event: watch::Sender<EventSeq>,
    leadership: watch::Sender<Leadership>,
}

/// A member of the cluster. Cheap to clone; every clone is the same node.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

impl Node {
    /// Starts the node on its folder; an empty folder becomes a cluster with this node as its one voter.
    ///
    /// # Errors
    /// When the folder cannot be used, with the files that are at fault and the way out.
    pub async fn start(options: Options) -> Result<Node, Error> {
        let leader = Leadership { term: 1, is_leader: true, leader: Some(options.node_id) };
        let shared = Shared {
            options,
            memory: Mutex::new(Memory { tables: Arc::new(MemoryTables::new()), index: 0 }),
            last_event: watch::Sender::new(EventSeq::default()),
            leadership: watch::Sender::new(leader),
        };
        Ok(Node { shared: Arc::new(shared) })
    }

    /// Stops the node: no proposal is answered afterwards, and everything is on disk.
    ///
    /// # Errors
    /// When something could not be written. What was acknowledged is safe all the same.
    pub async fn shutdown(&self) -> Result<(), Error> {
        Ok(())
    }

    /// State as this node has applied it: consistent, possibly behind the leader's.
    pub fn view(&self) -> View {
        let memory = self.memory();
        View::of_memory(Arc::clone(&memory.tables), memory.index)
    }

    /// State that includes everything acknowledged before the call, by whichever server.
    ///
    /// # Errors
    /// [`ProposeError::NoLeader`], [`ProposeError::TimedOut`] or [`ProposeError::Stopped`].
    pub async fn linearizable_view(&self) -> Result<View, ProposeError> {
        Ok(self.view())
    }

    /// The newest event. It changes only after a [`Node::view`] shows the event.
    pub fn last_event(&self) -> watch::Receiver<EventSeq> {
        self.shared.last_event.subscribe()
    }

    /// Who leads.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.subscribe()
    }

    /// How it is doing. Counts files: not for a hot path.
    pub fn status(&self) -> Status {
        let leadership = *self.shared.leadership.borrow();
        let index = self.memory().index;
        Status {
            node_id: self.shared.options.node_id,
            term: leadership.term,
            leader: leadership.leader,
            last_log: Some(index),
            applied: Some(index),
            snapshot: None,
            log_bytes: 0,
            state_bytes: 0,
            snapshot_bytes: 0,
            stopped: None,
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply_in_memory(&self, proposal: Proposal) -> Result<Outcome, ProposeError> {
        let Proposal { action, principal, idempotency_key, epoch, if_revision } = proposal;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = Timestamp(since_1970.as_millis() as u64);
        let command = Command { action, principal, at, idempotency_key, epoch, if_revision };
        let mut memory = self.memory();
        memory.index += 1;
        let mut tables = MemoryTables::clone(&memory.tables);
        let applied = match apply(&mut tables, EventSeq { index: memory.index, ordinal: 0 }, &command) {
            Ok(applied) => applied,
            Err(RuleError::Rejected(rejection)) => return Err(rejection.into()),
            Err(RuleError::Tables(error)) => return Err(ProposeError::Stopped(error.to_string())),
        };
        memory.tables = Arc::new(tables);
        drop(memory);
        self.shared.last_event.send_replace(applied.outcome.last_event);
        Ok(applied.outcome)
    }
}

impl Proposer for Node {
    fn propose(&self, proposal: Proposal) -> BoxFuture<'_, Result<Outcome, ProposeError>> {
        Box::pin(async move { self.apply_in_memory(proposal) })
    }
}
