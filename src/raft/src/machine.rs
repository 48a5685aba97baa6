//! The replicated state machine: applies entries in one transaction a batch, takes snapshots, installs them.
//!
//! What it does depends on the entries and on state alone; time and identity arrive inside the commands.

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
    StateStore, StateTx, StorageError,
    checkpoint::{SnapshotDir, SnapshotStore},
    state::{Applied, StateDb},
};

/// How many entries one transaction holds at the most: it is in memory until it is committed.
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

/// Who waits for an entry, and for what. Nobody does on a follower.
type Waiting = (Option<ApplyResponder<Types>>, Answers);

impl Machine {
    pub fn new(state: StateStore, snapshots: Arc<SnapshotStore>, health: Arc<Health>) -> io::Result<Self> {
        let last_event = watch::Sender::new(EventSeq::default());
        let machine = Self { last_event, feed: Publisher::new(), worker: Worker::start()?, state, snapshots, health };
        machine.announce()?;
        Ok(machine)
    }

    /// Tells followers of the events that a view shows more now.
    fn announce(&self) -> io::Result<()> {
        let cluster: Option<Cluster> = self.state.view().get(&Key::all()).map_err(io::Error::other)?;
        let last = cluster.unwrap_or_default().last_event;
        self.last_event.send_if_modified(|seen| std::mem::replace(seen, last) != last);
        Ok(())
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

    fn apply_batch(&self, batch: Vec<EntryResponder<Types>>) -> io::Result<Vec<Waiting>> {
        let db = self.state.current();
        let mut position = position(&db)?;
        let mut tx = db.transaction();
        let mut waiting = Vec::with_capacity(batch.len());
        let mut applied = AppliedBatch::default();
        for (entry, responder) in batch {
            waiting.push((responder, apply_entry(&mut tx, &mut position, &mut applied, entry)?));
        }
        applied.index = position.last.map_or(0, |last| last.index);
        tx.commit(&Applied { index: applied.index, details: encode_position(&position)? })?;
        let last = applied.events.last().map(|event| event.seq);
        self.feed.applied(applied);
        if let Some(last) = last {
            self.last_event.send_replace(last);
        }
        Ok(waiting)
    }

    /// Kept before it takes the place of state: a server that dies in between finishes it when it starts, see [`reconcile`]. The other
    /// way around nothing would tell a state that is ahead of its log from a log that lost its end.
    fn install(&self, snapshot: &SnapshotDir) -> io::Result<()> {
        snapshot.verify()?;
        let kept = self.snapshots.adopt(snapshot)?;
        swell_system::crash::point("raft::snapshot_adopted");
        self.state.install(&kept)?;
        self.feed.installed();
        self.announce()
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
    for command in &commands {
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
            for (responder, answers) in self.applying(move |machine| machine.apply_batch(batch)).await? {
                if let Some(responder) = responder {
                    responder.send(answers);
                }
            }
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
        self.machine.blocking(move |machine| describe(machine.snapshots.finish(&begun)?)).await
    }
}

/// Why a folder's parts do not belong together, and whether a snapshot mends it.
///
/// - State behind what was purged from the log: the entries between are gone; the newest snapshot that covers them takes the
///   state's place. openraft would go on without noticing.
/// - State and log behind the newest snapshot: it came from another server and was not installed to the end; it is now.
/// - State ahead of the log's end: acknowledged entries are missing from the log, unless the state came as a snapshot.
pub fn reconcile(
    log_end: Option<u64>,
    purged: Option<u64>,
    state: &StateStore,
    snapshots: &SnapshotStore,
    log_path: &std::path::Path,
) -> Result<(), StorageError> {
    let db = state.current();
    let applied = db.applied()?.map(|applied| applied.index);
    let newest = snapshots.newest()?;
    let covered = newest.as_ref().map(|snapshot| snapshot.manifest().applied);
    if purged > applied {
        let Some(snapshot) = newest.filter(|snapshot| Some(snapshot.manifest().applied) >= purged) else {
            let cause = format!(
                "it goes to entry {}, but the log in {} was purged up to {} and no snapshot covers the entries between",
                applied.unwrap_or(0),
                log_path.display(),
                purged.unwrap_or(0),
            );
            return Err(StorageError::Damaged { path: db.path().to_owned(), cause });
        };
        tracing::warn!(snapshot = %snapshot.path().display(), "state lacks entries that were purged: taking the snapshot");
        return state.install(&snapshot);
    }
    if applied > log_end && applied != covered {
        let cause = format!(
            "it ends at entry {}, but {} has applied entry {}: acknowledged entries are missing",
            log_end.map_or("none".to_owned(), |end| end.to_string()),
            db.path().display(),
            applied.unwrap_or(0),
        );
        return Err(StorageError::Damaged { path: log_path.to_owned(), cause });
    }
    if let Some(snapshot) = newest
        && covered > applied
        && covered > log_end
    {
        tracing::warn!(snapshot = %snapshot.path().display(), "a snapshot that was received is installed");
        return state.install(&snapshot);
    }
    Ok(())
}
