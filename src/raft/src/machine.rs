//! The replicated state machine: applies entries in one transaction a batch, takes snapshots, installs them.
//!
//! The result depends on the entries and on state alone; time and identity arrive inside the commands.

use std::{io, path::PathBuf, sync::Arc};

use futures::{Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend,
    entry::RaftEntry,
    storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine},
};
use tokio::{
    sync::{oneshot, watch},
    task::spawn_blocking,
};

use super::{
    feed::Publisher,
    format::{Position, decode_position, encode_position},
    health::Health,
    types::{Answers, Commands, Entry, LogId, Membership, Snapshot, SnapshotMeta, Types},
};
use swell_model::{
    apply::apply,
    change::AppliedBatch,
    cluster::Cluster,
    event::EventSeq,
    rejection::RuleError,
    tables::{Key, ReadTables},
};
use swell_storage::{
    EventStore, StateStore, StateTx, StorageError,
    checkpoint::{SnapshotDir, SnapshotStore},
    log::FlushedLog,
    state::{Applied, StateDb},
};

/// Most entries of one transaction: it is in memory until it is committed.
const BATCH_ENTRIES_MAX: usize = 64;

fn position(db: &StateDb) -> io::Result<Position> {
    position_of(&db.applied()?.unwrap_or_default())
}

/// Where nothing was applied yet, there are no details.
fn position_of(applied: &Applied) -> io::Result<Position> {
    if applied.details.is_empty() { Ok(Position::default()) } else { decode_position(&applied.details) }
}

/// The state machine. Cheap to clone.
#[derive(Clone)]
pub struct Machine {
    pub state: StateStore,
    pub snapshots: Arc<SnapshotStore>,
    pub events: EventStore,
    /// How far this server's own log is on disk.
    flushed: FlushedLog,
    pub last_event: watch::Sender<EventSeq>,
    pub feed: Publisher,
    worker: Worker,
    pub health: Arc<Health>,
}

/// The one thread that applies, so that consensus waits for no request that blocks. Ends when the last machine is dropped.
#[derive(Clone)]
struct Worker(std::sync::mpsc::SyncSender<Box<dyn FnOnce() + Send>>);

impl Worker {
    fn start() -> io::Result<Self> {
        // openraft applies one batch at a time: nothing ever waits here.
        let (sender, jobs) = std::sync::mpsc::sync_channel::<Box<dyn FnOnce() + Send>>(1);
        std::thread::Builder::new().name("apply".to_owned()).spawn(move || jobs.into_iter().for_each(|job| job()))?;
        Ok(Self(sender))
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let (answer, answered) = oneshot::channel();
        let ended = || io::Error::other("the thread that applies has ended");
        let job = Box::new(move || {
            // Nobody waits any more when the node is shut down.
            answer.send(work()).ok();
        });
        self.0.send(job).map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

/// The responder of an entry's proposer (`None` on a follower) and the answers for it.
type Answered = (Option<ApplyResponder<Types>>, Answers);

impl Machine {
    pub fn new(
        state: StateStore,
        snapshots: Arc<SnapshotStore>,
        events: EventStore,
        flushed: FlushedLog,
        health: Arc<Health>,
    ) -> io::Result<Self> {
        let last_event = watch::Sender::new(EventSeq::default());
        let (feed, worker) = (Publisher::new(), Worker::start()?);
        let machine = Self { state, snapshots, events, flushed, last_event, feed, worker, health };
        machine.announce()?;
        Ok(machine)
    }

    /// Shows the events that state shows, and tells whoever waits for more.
    fn announce(&self) -> io::Result<()> {
        let last = last_event(&self.state)?;
        self.events.show_up_to(last);
        self.last_event.send_if_modified(|seen| std::mem::replace(seen, last) != last);
        Ok(())
    }

    /// Whether `node` is the only voter, as far as state knows.
    pub fn is_sole_voter(&self, node: u64) -> io::Result<bool> {
        Ok(position(&self.state.current())?.membership.membership().voter_ids().eq([node]))
    }

    /// Runs on a thread that may block; whatever goes wrong there stops the node.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Machine) -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let machine = self.clone();
        let result = spawn_blocking(move || work(&machine)).await.map_err(io::Error::other).flatten();
        result.inspect_err(|error| self.health.stop(error))
    }

    /// As [`Machine::blocking`], on the thread that applies.
    async fn applying<T: Send + 'static>(&self, work: impl FnOnce(&Machine) -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let machine = self.clone();
        self.worker.run(move || work(&machine)).await.inspect_err(|error| self.health.stop(error))
    }

    fn apply_batch(&self, batch: Vec<EntryResponder<Types>>) -> io::Result<()> {
        let db = self.state.current();
        let mut position = position(&db)?;
        let mut tx = db.transaction();
        let mut answered: Vec<Answered> = Vec::with_capacity(batch.len());
        let mut applied = AppliedBatch::default();
        for (entry, responder) in batch {
            answered.push((responder, apply_entry(&mut tx, &mut position, &mut applied, entry)?));
        }
        applied.index = position.last.map_or(0, |last| last.index);
        // Before state: whoever dies in between applies the batch again, and writes the same events.
        self.events.append(applied.events.iter().map(Arc::as_ref))?;
        swell_system::crash::point("raft::events_appended");
        let log_flushed = self.flushed.last().map(|last| last.min(applied.index));
        tx.commit(&Applied { index: applied.index, log_flushed, details: encode_position(&position)? })?;
        let last = applied.events.last().map(|event| event.seq);
        if let Some(last) = last {
            self.events.show_up_to(last);
        }
        self.feed.applied(applied);
        if let Some(last) = last {
            self.last_event.send_replace(last);
        }
        // From this thread: whoever proposed need not wait until openraft's task runs again.
        for (responder, answers) in answered {
            if let Some(responder) = responder {
                responder.send(answers);
            }
        }
        Ok(())
    }

    /// The snapshot counts before it takes the place of state: a server that dies in between finishes it when it starts, see
    /// [`reconcile`].
    fn install(&self, snapshot: &SnapshotDir) -> io::Result<()> {
        snapshot.verify()?;
        let kept = self.snapshots.adopt(snapshot)?;
        swell_system::crash::point("raft::snapshot_adopted");
        self.state.install(&kept)?;
        self.events.skip_to(last_event(&self.state)?)?;
        self.announce()?;
        self.feed.installed();
        Ok(())
    }

    fn newest(&self) -> io::Result<Option<Snapshot>> {
        self.snapshots.newest()?.map(describe).transpose()
    }
}

/// Applies one entry: each of its commands, or none of what a rejected one had begun to write.
fn apply_entry(tx: &mut StateTx<'_>, position: &mut Position, batch: &mut AppliedBatch, entry: Entry) -> io::Result<Answers> {
    let id = entry.log_id();
    position.last = Some(id);
    let commands = match entry.payload {
        EntryPayload::Blank => return Ok(Answers::default()),
        EntryPayload::Membership(membership) => {
            position.membership = Membership::new(Some(id), membership);
            return Ok(Answers::default());
        }
        EntryPayload::Normal(Commands(commands)) => commands,
    };
    let mut next = EventSeq { index: id.index, ordinal: 0 };
    let mut answers = Vec::with_capacity(commands.len());
    for command in commands.iter() {
        tx.savepoint();
        match apply(tx, next, command) {
            Ok(applied) => {
                next.ordinal += applied.events.len() as u32;
                batch.changes.extend(applied.changes);
                batch.events.extend(applied.events.into_iter().map(Arc::new));
                answers.push(Ok(applied.outcome));
            }
            Err(RuleError::Rejected(rejection)) => {
                tx.rollback_to_savepoint()?;
                answers.push(Err(rejection));
            }
            // Nothing of the whole batch is committed: this server stops, and applies it again when it is started again.
            Err(RuleError::Tables(error)) => return Err(io::Error::other(error)),
        }
    }
    Ok(Answers(answers))
}

/// A snapshot with what openraft wants to know of it, read from the snapshot itself.
fn describe(dir: SnapshotDir) -> io::Result<Snapshot> {
    let position = position_of(&dir.applied()?)?;
    let meta = SnapshotMeta { last_log_id: position.last, last_membership: position.membership };
    Ok(Snapshot { meta, snapshot: dir })
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotDir;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        let position = position(&self.state.current())?;
        Ok((position.last, position.membership))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(BATCH_ENTRIES_MAX);
        while let Some(batch) = batches.next().await {
            let batch = batch.into_iter().collect::<io::Result<Vec<_>>>().inspect_err(|error| self.health.stop(error))?;
            self.applying(move |machine| machine.apply_batch(batch)).await?;
        }
        Ok(())
    }

    /// The checkpoint is taken here, where nothing is applied beside it; the rest may take its time.
    async fn get_snapshot_builder(&mut self) -> Builder {
        let begun = self.blocking(|machine| Ok(machine.snapshots.begin(&machine.state.current())?)).await;
        Builder { machine: self.clone(), begun: Some(begun) }
    }

    async fn install_snapshot(&mut self, _: &SnapshotMeta, snapshot: SnapshotDir) -> io::Result<()> {
        self.blocking(move |machine| machine.install(&snapshot)).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.blocking(Machine::newest).await
    }
}

/// A snapshot whose checkpoint was taken.
pub struct Builder {
    machine: Machine,
    begun: Option<io::Result<PathBuf>>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotDir;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let begun = self.begun.take().unwrap_or_else(|| Err(io::Error::other("a snapshot is built once")))?;
        let finish = move |machine: &Machine| {
            // A server that lost events with its power goes back to this snapshot: what it covers must be there.
            machine.events.sync()?;
            describe(machine.snapshots.finish(&begun)?)
        };
        self.machine.blocking(finish).await
    }
}

/// The newest event that state shows.
fn last_event(state: &StateStore) -> io::Result<EventSeq> {
    let cluster: Option<Cluster> = state.view().get(&Key::all()).map_err(io::Error::other)?;
    Ok(cluster.unwrap_or_default().last_event)
}

/// How far the log of a folder goes.
#[derive(Debug, Clone, Copy)]
pub struct LogBounds {
    /// Index of its last entry, or of the last that was purged.
    pub end: Option<u64>,
    /// Index of the last entry that was purged.
    pub purged: Option<u64>,
}

/// Makes sure that the log, state and snapshots of a folder belong together, before anything reads them.
///
/// - State behind what was purged from the log: the entries between are gone; the newest snapshot that covers them takes the
///   state's place. openraft would go on without noticing.
/// - The log ends before what it had on disk when state was written: acknowledged entries are missing. State that is only ahead of
///   the log is healthy: openraft applies what a quorum of other servers has on disk.
/// - State and log behind the newest snapshot: it came from another server and was not installed to the end; it is now.
///
/// # Errors
/// [`StorageError::LogLost`] and [`StorageError::StateBehindLog`], which name the folders and the way out.
pub fn reconcile(
    log: LogBounds,
    state: &StateStore,
    snapshots: &SnapshotStore,
    log_path: &std::path::Path,
) -> Result<(), StorageError> {
    let db = state.current();
    let recorded = db.applied()?;
    let applied = recorded.as_ref().map(|applied| applied.index);
    let log_flushed = recorded.and_then(|applied| applied.log_flushed);
    let newest = snapshots.newest()?;
    let covered = newest.as_ref().map(|snapshot| snapshot.manifest().applied);
    if log.purged > applied {
        let Some(snapshot) = newest.filter(|snapshot| Some(snapshot.manifest().applied) >= log.purged) else {
            return Err(StorageError::StateBehindLog {
                state: db.path().to_owned(),
                applied: applied.unwrap_or(0),
                log: log_path.to_owned(),
                purged: log.purged.unwrap_or(0),
            });
        };
        tracing::warn!(snapshot = %snapshot.path().display(), ?applied, purged = ?log.purged, "state lacks purged entries, installing the snapshot");
        return state.install(&snapshot);
    }
    if log_flushed > log.end {
        return Err(StorageError::LogLost {
            log: log_path.to_owned(),
            end: log.end,
            flushed: log_flushed.unwrap_or(0),
            state: db.path().to_owned(),
        });
    }
    if let Some(snapshot) = newest
        && covered > applied
        && covered > log.end
    {
        tracing::warn!(snapshot = %snapshot.path().display(), ?applied, "installing a received snapshot");
        return state.install(&snapshot);
    }
    Ok(())
}

/// Makes sure that every event that state shows is there, or that a gap says so. A power loss may take the events' tail and leave state:
/// then an older state takes its place, and applying from there writes the events again.
///
/// # Errors
/// When a database fails.
pub fn recover_events(
    log: LogBounds,
    state: &StateStore,
    snapshots: &SnapshotStore,
    events: &EventStore,
) -> Result<(), StorageError> {
    let failed = |error: io::Error| StorageError::Failed {
        tried: "read",
        path: state.current().path().to_owned(),
        cause: error.to_string(),
    };
    let written = events.last_written()?;
    if last_event(state).map_err(failed)? <= written {
        return Ok(());
    }
    let applied = state.current().applied()?.map(|applied| applied.index);
    let newest = snapshots.newest()?.filter(|snapshot| {
        let covers = Some(snapshot.manifest().applied);
        covers >= log.purged && covers < applied
    });
    match newest {
        // Only a log with every entry since the first leads to the same state again.
        None if log.purged.is_none() && log.end >= applied => {
            tracing::warn!(%written, ?applied, "events are missing, applying the whole log again");
            state.start_over()?;
        }
        None => {}
        Some(snapshot) => {
            tracing::warn!(%written, ?applied, snapshot = %snapshot.path().display(), "events are missing, applying again from the snapshot");
            state.install(&snapshot)?;
        }
    }
    events.skip_to(last_event(state).map_err(failed)?)
}

#[cfg(test)]
#[path = "tests/reconcile.rs"]
mod reconcile_tests;
