//! The runner on this server: runs the attempts that state assigns to it, stops those that state has given up, and says every few
//! seconds which it has. What an attempt does is `runner`'s; this only keeps the two in step.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{board::Board, events::Follower, node::LocalRunner};
use swell_model::{
    build::{Build, OpenBuild},
    command::FleetAction,
    event::EventKind,
    ids::BuildId,
    interfaces::{Proposal, Proposer},
    pipeline::{Pipeline, Source},
    principal::{Principal, Role},
    tables::{ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
};
use swell_raft::Node;
use swell_repositories::HostedRepositories;
use swell_runner::attempts::{AttemptJob, GitSource};

/// How often a runner says which attempts it has.
pub(super) const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);

/// How often it looks for work that it missed.
const TICK: Duration = Duration::from_secs(1);

type AttemptKey = (BuildId, u32);

pub(super) struct RunnerActor;

pub(super) enum RunnerMessage {
    /// Compare what runs with what should.
    Look,
    /// An attempt is over.
    Finished(AttemptKey),
}

pub(super) struct RunnerArguments {
    pub local: LocalRunner,
    pub node: Node,
    pub repositories: HostedRepositories,
    pub board: Arc<Board>,
}

pub(super) struct RunnerState {
    arguments: RunnerArguments,
    registered: bool,
    running: BTreeMap<AttemptKey, watch::Sender<bool>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for RunnerState {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
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
        let follower = Follower::from_now(arguments.node.clone());
        // First what was fenced while this runner was away is killed; then it accepts work.
        let live = live_attempts(&arguments)?;
        for attempt in arguments.local.attempts.on_disk() {
            if !live.contains_key(&attempt) {
                arguments.local.attempts.discard(attempt.0, attempt.1).await;
            }
        }
        let tasks = vec![tokio::spawn(follow(follower, myself.clone())), tokio::spawn(tick(myself))];
        Ok(RunnerState { arguments, registered: false, running: BTreeMap::new(), tasks })
    }

    async fn handle(
        &self,
        myself: ActorRef<RunnerMessage>,
        message: RunnerMessage,
        state: &mut RunnerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RunnerMessage::Look => {
                state.register().await;
                state.reconcile(&myself).await?;
                if !state.running.is_empty() {
                    swell_system::crash::panic_point("runner");
                }
            }
            RunnerMessage::Finished(attempt) => {
                state.running.remove(&attempt);
                // One that could not say how it ended is taken up again where it stood.
                if !live_attempts(&state.arguments)?.contains_key(&attempt) {
                    state.arguments.local.attempts.discard(attempt.0, attempt.1).await;
                }
            }
        }
        state.heartbeat();
        Ok(())
    }
}

async fn follow(mut follower: Follower, runner: ActorRef<RunnerMessage>) {
    while let Some(Ok(events)) = follower.next().await {
        let concerns = |event: &swell_model::event::Event| {
            matches!(event.kind, EventKind::BuildAssigned | EventKind::BuildCancelRequested) || event.kind.is_build_transition()
        };
        if events.iter().any(concerns) && runner.send_message(RunnerMessage::Look).is_err() {
            return;
        }
    }
}

async fn tick(runner: ActorRef<RunnerMessage>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if runner.send_message(RunnerMessage::Look).is_err() {
            return;
        }
    }
}

/// The live attempts that state assigns to this runner.
fn live_attempts(arguments: &RunnerArguments) -> Result<BTreeMap<AttemptKey, Build>, TablesError> {
    let view = arguments.node.view();
    let mut live = BTreeMap::new();
    for open in view.scan::<OpenBuild>(&Scan::all(), SCAN_RECORDS_MAX)? {
        let Some(build) = view.get::<Build>(&key(open.build.0))? else { continue };
        let ours = build.live_attempt().filter(|attempt| attempt.runner == arguments.local.name).map(|attempt| attempt.number);
        if let Some(number) = ours {
            live.insert((build.id, number), build);
        }
    }
    Ok(live)
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
        let live = live_attempts(&self.arguments)?;
        for (attempt, stop) in &self.running {
            let unwanted = live.get(attempt).is_none_or(|build| build.cancel_asked);
            stop.send_if_modified(|stopped| unwanted && !std::mem::replace(stopped, true));
        }
        for (attempt, build) in live {
            if !self.running.contains_key(&attempt) {
                self.start(attempt, build, myself).await?;
            }
        }
        Ok(())
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
        self.tasks.retain(|task| !task.is_finished());
        self.tasks.push(tokio::spawn(async move {
            let source = source(&repositories, &pipeline).await;
            let job = AttemptJob { build, attempt: attempt.1, file: pipeline.file, source };
            // In a task of its own, so that a panic ends this attempt and no other.
            let run = AbortOnDropHandle::new(tokio::spawn(async move { attempts.run(job, stopped).await }));
            if let Err(error) = run.await {
                tracing::error!(build = %attempt.0, attempt = attempt.1, %error, "an attempt failed within the runner");
            }
            if myself.send_message(RunnerMessage::Finished(attempt)).is_err() {
                tracing::debug!(build = %attempt.0, "the runner stopped before its attempt was over");
            }
        }));
        Ok(())
    }

    fn heartbeat(&self) {
        let attempts: BTreeSet<AttemptKey> = self.running.keys().copied().collect();
        self.arguments.board.heartbeat(&self.arguments.local.name, attempts);
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
