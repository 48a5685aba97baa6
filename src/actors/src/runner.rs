//! The runner on this server: runs the attempts that state assigns to it, stops those that state has given up, and says every few
//! seconds which it has. What an attempt does is `runner`'s; this only keeps the two in step.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{runner_liveness::RunnerLiveness, supervise::beside};
use swell_model::{
    build::{Build, Resources},
    change::{AppliedBatch, Change},
    command::FleetAction,
    ids::{BuildId, RunnerName},
    interfaces::{Proposal, Proposer},
    pipeline::{Pipeline, Source},
    principal::{Principal, Role},
    tables::{ReadTables, TablesError, key},
};
use swell_projections::build_queue::BuildQueue;
use swell_raft::{FeedItem, Node};
use swell_repositories::HostedRepositories;
use swell_runner::attempts::{AttemptJob, Attempts, GitSource};

/// How often it looks for work that it missed.
const TICK: Duration = Duration::from_secs(1);

type AttemptKey = (BuildId, u32);

/// What a server needs to be a runner, too.
#[derive(Clone)]
pub struct LocalRunner {
    pub name: RunnerName,
    /// What it offers to the scheduler.
    pub resources: Resources,
    /// Runs the attempts assigned to this runner.
    pub attempts: Attempts,
}

pub(super) struct RunnerActor;

pub(super) enum RunnerMessage {
    /// Compare what runs with what should.
    Reconcile,
    /// An attempt is over.
    Finished(AttemptKey),
    /// Nothing is left of an attempt.
    Discarded(AttemptKey),
}

pub(super) struct RunnerArguments {
    pub local: LocalRunner,
    pub node: Node,
    pub repositories: HostedRepositories,
    pub liveness: Arc<RunnerLiveness>,
}

pub(super) struct RunnerState {
    arguments: RunnerArguments,
    queue: Arc<RwLock<BuildQueue>>,
    registered: bool,
    running: BTreeMap<AttemptKey, watch::Sender<bool>>,
    /// Being deleted, which takes as long as their folders are large.
    discarding: BTreeSet<AttemptKey>,
    /// Of these: were given up while this runner was away. It accepts no new work before they are gone.
    fenced: BTreeSet<AttemptKey>,
    tasks: Vec<AbortOnDropHandle<()>>,
}

impl Actor for RunnerActor {
    type Msg = RunnerMessage;
    type State = RunnerState;
    type Arguments = RunnerArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<RunnerMessage>,
        arguments: RunnerArguments,
    ) -> Result<RunnerState, ActorProcessingErr> {
        let queue = Arc::new(RwLock::new(BuildQueue::from_tables(&arguments.node.view())?));
        let follower = follow(arguments.node.clone(), arguments.local.name.clone(), Arc::clone(&queue), myself.clone());
        let tasks = vec![beside(myself.clone(), follower), beside(myself.clone(), tick(myself.clone()))];
        let mut state = RunnerState {
            arguments,
            queue,
            registered: false,
            running: BTreeMap::new(),
            discarding: BTreeSet::new(),
            fenced: BTreeSet::new(),
            tasks,
        };
        // First what was fenced while this runner was away is killed; then it accepts work.
        let live = state.live_attempts();
        state.fenced = state.arguments.local.attempts.on_disk().into_iter().filter(|attempt| !live.contains(attempt)).collect();
        state.fenced.clone().into_iter().for_each(|attempt| state.discard(attempt, &myself));
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<RunnerMessage>,
        message: RunnerMessage,
        state: &mut RunnerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RunnerMessage::Reconcile => {
                state.register().await;
                state.reconcile(&myself).await?;
                if !state.running.is_empty() {
                    swell_system::crash::panic_point("runner");
                }
            }
            RunnerMessage::Finished(attempt) => {
                state.running.remove(&attempt);
                // One that could not say how it ended is taken up again where it stood.
                if !state.live_builds()?.contains_key(&attempt) {
                    state.discard(attempt, &myself);
                }
            }
            RunnerMessage::Discarded(attempt) => {
                state.discarding.remove(&attempt);
                state.fenced.remove(&attempt);
                state.reconcile(&myself).await?;
            }
        }
        state.heartbeat();
        Ok(())
    }
}

/// Keeps the queue up to date and tells the runner of changes to its builds.
async fn follow(node: Node, name: RunnerName, queue: Arc<RwLock<BuildQueue>>, runner: ActorRef<RunnerMessage>) {
    let mut feed = node.changes();
    while let Some(item) = feed.next().await {
        let concerns = match item {
            FeedItem::StartOver(view) => match BuildQueue::from_tables(&view) {
                Ok(now) => {
                    *queue.write().unwrap_or_else(PoisonError::into_inner) = now;
                    true
                }
                Err(error) => {
                    runner.stop(Some(error.to_string()));
                    return;
                }
            },
            FeedItem::Applied(batch) => {
                queue.write().unwrap_or_else(PoisonError::into_inner).update(&batch);
                concerns(&batch, &name)
            }
        };
        if concerns && runner.send_message(RunnerMessage::Reconcile).is_err() {
            return;
        }
    }
}

/// Whether a build changed that the runner has or had.
fn concerns(batch: &AppliedBatch, name: &RunnerName) -> bool {
    let is_its = |build: &Build| build.attempts.last().is_some_and(|attempt| attempt.runner == *name);
    batch.changes.iter().any(|change| matches!(change, Change::Build(build) if is_its(build)))
}

async fn tick(runner: ActorRef<RunnerMessage>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if runner.send_message(RunnerMessage::Reconcile).is_err() {
            return;
        }
    }
}

impl RunnerState {
    async fn register(&mut self) {
        if self.registered {
            return;
        }
        let LocalRunner { name, resources, .. } = &self.arguments.local;
        let action = FleetAction::RegisterRunner { name: name.clone(), resources: *resources };
        let principal = Principal::new(Role::Runner, name.as_str());
        match self.arguments.node.propose(Proposal::new(action, principal)).await {
            Ok(_) => self.registered = true,
            Err(error) => tracing::warn!(%error, "the runner cannot register yet"),
        }
    }

    async fn reconcile(&mut self, myself: &ActorRef<RunnerMessage>) -> Result<(), ActorProcessingErr> {
        let live = self.live_builds()?;
        for (attempt, stop) in &self.running {
            let unwanted = live.get(attempt).is_none_or(|build| build.cancel_asked);
            stop.send_if_modified(|stopped| unwanted && !std::mem::replace(stopped, true));
        }
        let on_disk = if self.fenced.is_empty() { Vec::new() } else { self.arguments.local.attempts.on_disk() };
        for (attempt, build) in live {
            let may_start = self.fenced.is_empty() || on_disk.contains(&attempt);
            if may_start && !self.running.contains_key(&attempt) && !self.discarding.contains(&attempt) {
                self.start(attempt, build, myself).await?;
            }
        }
        Ok(())
    }

    /// The live attempts that state assigns to this runner.
    fn live_attempts(&self) -> BTreeSet<AttemptKey> {
        let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner);
        queue.attempts_on(&self.arguments.local.name).collect()
    }

    /// Their builds. One whose attempt has ended meanwhile is left out.
    fn live_builds(&self) -> Result<BTreeMap<AttemptKey, Build>, TablesError> {
        let view = self.arguments.node.view();
        let mut live = BTreeMap::new();
        for attempt in self.live_attempts() {
            let build: Option<Build> = view.get(&key(attempt.0.0))?;
            let is_live = |build: &Build| build.live_attempt().is_some_and(|live| live.number == attempt.1);
            live.extend(build.filter(is_live).map(|build| (attempt, build)));
        }
        Ok(live)
    }

    /// Kills what is left of an attempt and deletes it, while the others go on.
    fn discard(&mut self, attempt: AttemptKey, myself: &ActorRef<RunnerMessage>) {
        if !self.discarding.insert(attempt) {
            return;
        }
        let (attempts, myself) = (self.arguments.local.attempts.clone(), myself.clone());
        self.spawn(async move {
            // In a task of its own, so that a panic does not leave the attempt half deleted for ever.
            let discard = tokio::spawn(async move { attempts.discard(attempt.0, attempt.1).await });
            if let Err(error) = AbortOnDropHandle::new(discard).await {
                tracing::error!(build = %attempt.0, attempt = attempt.1, %error, "failed to delete an attempt");
            }
            if myself.send_message(RunnerMessage::Discarded(attempt)).is_err() {
                tracing::debug!(build = %attempt.0, "runner stopped before an attempt was deleted");
            }
        });
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.retain(|task| !task.is_finished());
        self.tasks.push(AbortOnDropHandle::new(tokio::spawn(task)));
    }

    async fn start(
        &mut self,
        attempt: AttemptKey,
        build: Build,
        myself: &ActorRef<RunnerMessage>,
    ) -> Result<(), ActorProcessingErr> {
        let pipeline: Option<Pipeline> = self.arguments.node.view().get(&key(build.pipeline.as_str()))?;
        let Some(pipeline) = pipeline else { return Ok(()) };
        let (stop, stopped) = watch::channel(build.cancel_asked);
        self.running.insert(attempt, stop);
        let attempts = self.arguments.local.attempts.clone();
        let repositories = self.arguments.repositories.clone();
        let myself = myself.clone();
        self.spawn(async move {
            let source = source(&repositories, &pipeline).await;
            let job = AttemptJob { build, attempt: attempt.1, file: pipeline.file, source };
            // In a task of its own, so that a panic ends this attempt and no other.
            let run = AbortOnDropHandle::new(tokio::spawn(async move { attempts.run(job, stopped).await }));
            if let Err(error) = run.await {
                tracing::error!(build = %attempt.0, attempt = attempt.1, %error, "an attempt failed within the runner");
            }
            if myself.send_message(RunnerMessage::Finished(attempt)).is_err() {
                tracing::debug!(build = %attempt.0, "runner stopped before its attempt was over");
            }
        });
        Ok(())
    }

    fn heartbeat(&self) {
        let attempts: BTreeSet<AttemptKey> = self.running.keys().copied().collect();
        self.arguments.liveness.heartbeat(&self.arguments.local.name, attempts);
    }
}

/// Where the attempt's commit is fetched from. A repository that is hosted here is read from its cache.
async fn source(repositories: &HostedRepositories, pipeline: &Pipeline) -> Result<GitSource, String> {
    match &pipeline.source {
        Source::Remote(url) => Ok(GitSource { url: url.clone(), token: None }),
        Source::Hosted(name) => match repositories.catch_up(name).await {
            Ok(path) => Ok(GitSource { url: path.to_string_lossy().into_owned(), token: None }),
            Err(error) => Err(error.to_string()),
        },
    }
}
