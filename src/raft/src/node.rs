//! The node as everyone else sees it: propose, read, follow. A cheap handle; openraft's task owns the rest.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use futures::future::BoxFuture;
use openraft::{
    BasicNode, Config, RaftNetworkFactory, ReadPolicy, ServerState, SnapshotPolicy, async_runtime::watch::WatchReceiver,
    errors::RaftError, network::NetSnapshot,
};
use tokio::sync::watch;

use super::{
    ChangeFeed, Leadership, Options, Status,
    format::decode_id,
    health::Health,
    log_store::LogStore,
    machine::{LogBounds, Machine, reconcile, recover_events},
    network::NoPeers,
    proposer::Queue,
    types::{LogId, Raft, Types},
};
use swell_model::{
    command::Outcome,
    event::EventSeq,
    interfaces::{Proposal, ProposeError, Proposer},
};
use swell_storage::{
    EventStore, StateStore, StorageError, View,
    checkpoint::{SnapshotDir, SnapshotStore},
    log::RaftLog,
    size_of_dir,
    state::StateDb,
};

/// How long sending and installing a snapshot may take.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

/// How long [`Node::shutdown`] waits for each of its steps.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

const LOG: &str = "raft";
const STATE: &str = "state";
const EVENTS: &str = "events";
const SNAPSHOTS: &str = "snapshots";

/// Why a node cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its folder cannot be read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Its options contradict each other.
    #[error("failed to start a node with these options: {0}")]
    Options(String),
    /// Consensus does not start, or has stopped.
    #[error("this server has stopped: {0}")]
    Stopped(String),
}

struct Shared {
    options: Options,
    raft: Raft,
    machine: Machine,
    queue: Queue,
    health: Arc<Health>,
    leadership: watch::Receiver<Leadership>,
    /// `None` after the shutdown, which closes it.
    log: Mutex<Option<RaftLog>>,
    /// Reads all of state once; waited for by the shutdown.
    verifier: Mutex<Option<JoinHandle<()>>>,
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
        let alone = BTreeMap::from([(options.node_id, BasicNode::default())]);
        Self::start_with(options, NoPeers, Some(alone)).await
    }

    /// Starts the node with a network. An empty folder becomes a cluster of `members`, or waits to be added to one.
    pub(super) async fn start_with<N>(
        options: Options,
        network: N,
        members: Option<BTreeMap<u64, BasicNode>>,
    ) -> Result<Node, Error>
    where
        N: RaftNetworkFactory<Types>,
        N::Network: NetSnapshot<Types, SnapshotData = SnapshotDir>,
    {
        let config = Arc::new(config(&options)?);
        let health = Arc::new(Health::new());
        let data_dir = options.data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || open(&data_dir)).await;
        let Opened { log, state, snapshots, events } = opened.map_err(|error| Error::Stopped(error.to_string()))??;
        let stopped = |error: &dyn std::fmt::Display| Error::Stopped(error.to_string());
        let machine = Machine::new(state.clone(), Arc::new(snapshots), events.clone(), log.flushed(), Arc::clone(&health))
            .map_err(|error| stopped(&error))?;
        let verifier = verify_in_background(state.current(), Arc::clone(&health))?;
        let store = LogStore::new(log.clone(), state, events, Arc::clone(&health));
        let raft = Raft::new(options.node_id, config, network, store, machine.clone()).await.map_err(|error| stopped(&error))?;
        if let Some(members) = members
            && !raft.is_initialized().await.map_err(|error| stopped(&error))?
        {
            raft.initialize(members).await.map_err(|error| stopped(&error))?;
        }
        if machine.is_sole_voter(options.node_id).map_err(|error| stopped(&error))? {
            // There is nobody else to wait for: the election need not wait for its timeout after a restart.
            raft.trigger().elect(true).await.map_err(|error| stopped(&error))?;
        }
        let leadership = follow_leadership(&raft, Arc::clone(&health));
        let queue = Queue::new(raft.clone(), options.clone(), Arc::clone(&health));
        let (log, verifier) = (Mutex::new(Some(log)), Mutex::new(Some(verifier)));
        Ok(Node { shared: Arc::new(Shared { options, raft, machine, queue, health, leadership, log, verifier }) })
    }

    /// Stops the node: no proposal is applied afterwards, everything is on disk, and the folder may be opened again once every
    /// [`View`] is dropped.
    ///
    /// # Errors
    /// When something could not be written. What was acknowledged is safe all the same.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let shared = &self.shared;
        let before = shared.health.stopped();
        let log = shared.log.lock().unwrap_or_else(PoisonError::into_inner).take();
        let stopped = tokio::time::timeout(SHUTDOWN_TIMEOUT, shared.raft.shutdown()).await;
        shared.health.stop(&"it was shut down");
        // openraft waits for its core, and not for all of its tasks: they may hold the log and the state a little longer.
        let released = async {
            while shared.machine.state.holders() > 1 || log.as_ref().is_some_and(|log| log.holders() > 1) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(SHUTDOWN_TIMEOUT, released).await.ok();
        let (state, events) = (shared.machine.state.current(), shared.machine.events.clone());
        let verifier = shared.verifier.lock().unwrap_or_else(PoisonError::into_inner).take();
        let close = move || {
            drop(log);
            if verifier.is_some_and(|verifier| verifier.join().is_err()) {
                tracing::error!("the thread that reads all of state panicked");
            }
            events.sync().and_then(|()| state.sync())
        };
        let synced = tokio::task::spawn_blocking(close).await;
        match (stopped, before) {
            (_, Some(why)) => Err(Error::Stopped(why)),
            (Err(_), None) => Err(Error::Stopped("it did not end in time".to_owned())),
            (Ok(Err(error)), None) => Err(Error::Stopped(error.to_string())),
            (Ok(Ok(())), None) => Ok(synced.map_err(|error| Error::Stopped(error.to_string()))??),
        }
    }

    /// Waits until the node has stopped, such as for a full disk, and says why. It does not start again by itself: the process must end,
    /// so that a new one finds out whether the cause is gone.
    pub async fn stopped(&self) -> String {
        self.shared.health.until_stopped().await
    }

    /// State as this node has applied it: consistent, possibly behind the leader's.
    pub fn view(&self) -> View {
        self.shared.machine.state.view()
    }

    /// State that includes everything acknowledged before the call, by whichever server. Asks a majority whether this node still
    /// leads, and trusts no clock.
    ///
    /// # Errors
    /// [`ProposeError::NoLeader`] where this node does not lead, [`ProposeError::TimedOut`] or [`ProposeError::Stopped`].
    pub async fn linearizable_view(&self) -> Result<View, ProposeError> {
        let shared = &self.shared;
        if let Some(why) = shared.health.stopped() {
            return Err(ProposeError::Stopped(why));
        }
        let ready = shared.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout(shared.options.propose_timeout, ready).await {
            Err(_) => Err(ProposeError::TimedOut),
            Ok(Err(RaftError::APIError(_))) => Err(ProposeError::NoLeader),
            Ok(Err(RaftError::Fatal(fatal))) => {
                Err(ProposeError::Stopped(shared.health.stopped().unwrap_or_else(|| fatal.to_string())))
            }
            Ok(Ok(_)) => Ok(self.view()),
        }
    }

    /// Everything that happened, as far as this server has it. Shows no event before a [`Node::view`] shows what it led to.
    pub fn events(&self) -> EventStore {
        self.shared.machine.events.clone()
    }

    /// The newest event. It changes only after a [`Node::view`] shows the event.
    pub fn last_event(&self) -> watch::Receiver<EventSeq> {
        self.shared.machine.last_event.subscribe()
    }

    /// Everything that this node applies from now on, beginning with a view of what it has applied.
    pub fn changes(&self) -> ChangeFeed {
        ChangeFeed::new(self.clone(), &self.shared.machine.feed)
    }

    /// The present leadership, as this node knows it.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.clone()
    }

    /// The node's status. Lists files: not for a hot path.
    pub fn status(&self) -> Status {
        let metrics = self.shared.raft.metrics().borrow_watched().clone();
        let size = |folder| size_of_dir(&self.shared.options.data_dir.join(folder));
        let leadership = *self.shared.leadership.borrow();
        Status {
            node_id: self.shared.options.node_id,
            term: leadership.term,
            leader: leadership.leader,
            last_log: metrics.last_log_index,
            applied: metrics.last_applied.map(|id| id.index.max(self.view().applied())),
            snapshot: metrics.snapshot.map(|id| id.index),
            log_bytes: size(LOG),
            state_bytes: size(STATE),
            event_bytes: size(EVENTS),
            snapshot_bytes: size(SNAPSHOTS),
            stopped: self.shared.health.stopped(),
        }
    }

    /// Holds the writer of the log back.
    #[cfg(test)]
    pub(super) fn writer_gate(&self) -> swell_storage::log::gate::WriterGate {
        let log = self.shared.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.as_ref().map(RaftLog::writer_gate).unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn raft(&self) -> &Raft {
        &self.shared.raft
    }

    #[cfg(test)]
    pub(super) fn purged(&self) -> Option<u64> {
        self.shared.raft.metrics().borrow_watched().purged.map(|id| id.index)
    }

    #[cfg(test)]
    pub(super) fn snapshots(&self) -> &SnapshotStore {
        &self.shared.machine.snapshots
    }
}

impl Proposer for Node {
    fn propose(&self, proposal: Proposal) -> BoxFuture<'_, Result<Outcome, ProposeError>> {
        Box::pin(self.shared.queue.propose(proposal))
    }
}

fn config(options: &Options) -> Result<Config, Error> {
    let millis = |duration: Duration| duration.as_millis() as u64;
    let config = Config {
        cluster_name: "swell".to_owned(),
        heartbeat_interval: millis(options.heartbeat),
        election_timeout_min: millis(options.election_timeout_min),
        election_timeout_max: 2 * millis(options.election_timeout_min),
        install_snapshot_timeout: millis(INSTALL_TIMEOUT),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(options.snapshot_every_entries),
        max_in_snapshot_log_to_keep: options.keep_entries,
        purge_batch_size: options.keep_entries.max(1),
        // A server that is further behind than a snapshot would help gets one.
        replication_lag_threshold: options.snapshot_every_entries + options.keep_entries,
        // A server that was cut off and returns must not depose a leader that works.
        enable_pre_vote: Some(true),
        // A leader replicates entries before its own disk has them. Restarted, it must not resume its term without a vote: its log may lack
        // an entry that a follower holds, and it would write another one under the same term and index, which no follower could tell apart.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    config.validate().map_err(|error| Error::Options(error.to_string()))
}

/// What is in a node's folder.
struct Opened {
    log: RaftLog,
    state: StateStore,
    snapshots: SnapshotStore,
    events: EventStore,
}

/// Opens what is in the folder, and makes sure that its parts belong together. The log first: its lock guards the folder.
fn open(data_dir: &Path) -> Result<Opened, Error> {
    let log = RaftLog::open(&data_dir.join(LOG))?;
    let state = StateStore::open(&data_dir.join(STATE))?;
    let snapshots = SnapshotStore::open(&data_dir.join(SNAPSHOTS))?;
    let events = EventStore::open(&data_dir.join(EVENTS))?;
    let (held, purged) = log.bounds();
    let damaged = |error: std::io::Error| StorageError::Damaged { path: log.path().to_owned(), cause: error.to_string() };
    let purged: Option<LogId> = purged.as_deref().map(decode_id).transpose().map_err(damaged)?;
    let purged = purged.map(|id| id.index);
    let bounds = LogBounds { end: held.last().or(purged), purged };
    reconcile(bounds, &state, &snapshots, log.path())?;
    recover_events(bounds, &state, &snapshots, &events)?;
    Ok(Opened { log, state, snapshots, events })
}

/// Reads all of state once, on a thread of its own, so that damage is found soon and a start does not wait for it.
fn verify_in_background(state: Arc<StateDb>, health: Arc<Health>) -> Result<JoinHandle<()>, Error> {
    let verify = move || {
        if let Err(error) = state.verify(|| health.stopped().is_none()) {
            health.stop(&error);
        }
    };
    let thread = thread::Builder::new().name("verify-state".to_owned()).spawn(verify);
    thread.map_err(|error| Error::Stopped(format!("failed to start a thread: {error}")))
}

/// Watches openraft's metrics for who leads. Ends with the node.
fn follow_leadership(raft: &Raft, health: Arc<Health>) -> watch::Receiver<Leadership> {
    let mut metrics = raft.metrics();
    let (sender, receiver) = watch::channel(Leadership::default());
    tokio::spawn(async move {
        loop {
            let (now, running) = {
                let metrics = metrics.borrow_watched();
                let is_leader = metrics.state == ServerState::Leader;
                let now = Leadership { term: metrics.current_term, is_leader, leader: metrics.current_leader };
                (now, metrics.running_state.clone())
            };
            if let Err(fatal) = running {
                health.stop(&fatal);
                sender.send_replace(Leadership { is_leader: false, leader: None, ..now });
                return;
            }
            sender.send_if_modified(|before| std::mem::replace(before, now) != now);
            if metrics.changed().await.is_err() {
                sender.send_replace(Leadership { is_leader: false, leader: None, ..now });
                return;
            }
        }
    });
    receiver
}
