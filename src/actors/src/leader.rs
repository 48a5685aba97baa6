//! The leader's part of the tree: one actor for the queue, and one for each pipeline, open build and open rollout. They are spawned and
//! woken by the changes that concern their subjects; all of state is compared only when an epoch begins and every [`COMPARE_EVERY`]. All
//! end as soon as this server no longer leads.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use roaring::RoaringBitmap;
use tokio_util::task::AbortOnDropHandle;

use super::{
    controller::Controller,
    leader_context::{LeaderContext, PROPOSE_WITHIN},
    leader_projections::{Concerned, LeaderProjections},
    reconciler::Waker,
    runner_liveness::RunnerLiveness,
    supervise::{FORGIVEN_AFTER, Failures, beside, blocking},
};
use swell_artifacts::store::ContentStore;
use swell_git::Mirrors;
use swell_model::{
    actor_failure::{self, ActorFailure},
    build::OpenBuild,
    change::AppliedBatch,
    cluster::{Cluster, Epoch},
    command::{ClusterAction, FleetAction},
    fleet::Target,
    interfaces::{Proposal, ProposeError, Proposer},
    pipeline::Pipeline,
    principal::Principal,
    rejection::Rejection,
    rollout::{OpenRollout, plan_input::lost},
    tables::{Key, ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
};
use swell_raft::{FeedItem, Node, View};
use swell_repositories::HostedRepositories;

/// How often the leader looks for targets that have been gone for longer than the grace.
const LOOK_AROUND_EVERY: Duration = Duration::from_secs(1);

/// How often the leader asks whether its clock may be adopted although it is ahead.
const CONFIRM_EVERY: Duration = Duration::from_secs(60);

/// How often all of state is compared with the actors: a change that woke nobody must not be lost for ever.
const COMPARE_EVERY: Duration = Duration::from_secs(30);

pub(super) struct Leader;

pub(super) enum LeaderMessage {
    /// Changes concern somebody: see [`Inbox`].
    Wake,
    /// Time to compare all of state with the actors.
    Compare,
    /// Time to look for lost targets and at the clock.
    LookAround,
    /// A child that failed may be started again, or has not failed for a while.
    Restart,
}

/// Whom changes concern that the leader has not looked at; one message to the leader is on its way while it is not empty.
#[derive(Default)]
struct Inbox(Mutex<BTreeMap<Controller, bool>>);

impl Inbox {
    /// Adds to it; true: the leader is to be told.
    fn add(&self, concerned: Concerned) -> bool {
        let Concerned { scheduler, pipelines, builds, rollouts, .. } = concerned;
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = waiting.is_empty();
        waiting.extend(scheduler.then_some((Controller::Scheduler, true)));
        waiting.extend(pipelines.into_iter().map(|name| (Controller::Pipeline(name), true)));
        waiting.extend(builds.into_iter().map(|(id, is_open)| (Controller::Build(id), is_open)));
        waiting.extend(rollouts.into_iter().map(|(id, is_open)| (Controller::Rollout(id), is_open)));
        was_empty && !waiting.is_empty()
    }

    /// Whom to wake, with whether to spawn who is missing.
    fn take(&self) -> BTreeMap<Controller, bool> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(super) struct LeaderState {
    context: Arc<LeaderContext>,
    inbox: Arc<Inbox>,
    children: BTreeMap<Controller, Waker>,
    controllers: HashMap<ActorId, Controller>,
    failures: BTreeMap<Controller, Failed>,
    /// Failed, and not to be started again before then.
    resting: BTreeMap<Controller, Instant>,
    time_asked: Option<Instant>,
    _tasks: [AbortOnDropHandle<()>; 3],
}

/// How a child failed lately.
#[derive(Default)]
struct Failed {
    failures: Failures,
    why: String,
}

/// What a leader is started with: everything of [`LeaderContext`] but what it measures itself.
pub(super) struct LeaderArguments {
    pub node: Node,
    pub term: u64,
    pub server: u64,
    pub runners: Arc<RunnerLiveness>,
    pub content: Arc<dyn ContentStore>,
    pub repositories: HostedRepositories,
    pub mirrors: Mirrors,
}

impl Actor for Leader {
    type Msg = LeaderMessage;
    type State = LeaderState;
    type Arguments = LeaderArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<LeaderMessage>,
        arguments: LeaderArguments,
    ) -> Result<LeaderState, ActorProcessingErr> {
        let LeaderArguments { node, term, server, runners, content, repositories, mirrors } = arguments;
        let epoch = Epoch(term);
        let context = Arc::new(LeaderContext::new(node, epoch, runners, content, repositories, mirrors));
        begin_epoch(&context, server).await?;
        swell_system::crash::panic_point("leader");
        let inbox = Arc::new(Inbox::default());
        let follower = follow(Arc::clone(&context), Arc::clone(&inbox), myself.clone());
        let mut state = LeaderState {
            context: Arc::clone(&context),
            inbox,
            children: BTreeMap::new(),
            controllers: HashMap::new(),
            failures: BTreeMap::new(),
            resting: BTreeMap::new(),
            time_asked: None,
            _tasks: [
                beside(myself.clone(), follower),
                beside(myself.clone(), compare(myself.clone())),
                beside(myself.clone(), look_around(myself.clone())),
            ],
        };
        // Children read the projections.
        context.shows(1).await;
        state.spawn_missing(&myself).await?;
        state.record_failures().await?;
        tracing::info!(epoch = epoch.0, children = state.children.len(), "leadership began");
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<LeaderMessage>,
        message: LeaderMessage,
        state: &mut LeaderState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LeaderMessage::Wake => {
                swell_system::crash::panic_point("leader");
                for (controller, is_open) in state.inbox.take() {
                    match state.children.get(&controller) {
                        Some(child) => child.wake(),
                        None if is_open => state.spawn(controller, &myself).await?,
                        None => {}
                    }
                }
            }
            LeaderMessage::Compare => {
                state.spawn_missing(&myself).await?;
                state.children.values().for_each(Waker::wake);
            }
            LeaderMessage::LookAround => {
                state.declare_lost().await?;
                state.confirm_time().await?;
            }
            LeaderMessage::Restart => {
                state.spawn_missing(&myself).await?;
                state.record_failures().await?;
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<LeaderMessage>,
        event: SupervisionEvent,
        state: &mut LeaderState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(cell, _, _) => {
                if let Some(controller) = state.controllers.remove(&cell.get_id()) {
                    state.children.remove(&controller);
                    if state.failures.remove(&controller).is_some() {
                        state.record_failures().await?;
                    }
                }
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                let Some(controller) = state.controllers.remove(&cell.get_id()) else { return Ok(()) };
                state.children.remove(&controller);
                let failed = state.failures.entry(controller.clone()).or_default();
                let delay = failed.failures.count(Instant::now());
                failed.why = error.to_string();
                tracing::error!(?controller, %error, retry_in_ms = delay.as_millis() as u64, "actor failed, restarting it");
                state.resting.insert(controller, Instant::now() + delay);
                for delay in [delay, FORGIVEN_AFTER + delay] {
                    remind(myself.clone(), delay);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn remind(leader: ActorRef<LeaderMessage>, delay: Duration) {
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        if leader.send_message(LeaderMessage::Restart).is_err() {
            tracing::debug!("leader stopped before a child could be restarted");
        }
    });
}

/// Commits the beginning of this leadership. Only what is proposed after it can be this leader's.
async fn begin_epoch(context: &LeaderContext, server: u64) -> Result<(), ActorProcessingErr> {
    let action = ClusterAction::BeginEpoch { epoch: context.epoch, server };
    let proposal = Proposal::new(action, Principal::system("leader"));
    match tokio::time::timeout(PROPOSE_WITHIN, context.node.propose(proposal)).await {
        Ok(Ok(_)) => Ok(()),
        // This server leads the same term still, and its actors are started anew.
        Ok(Err(ProposeError::Rejected(Rejection::StaleEpoch { now, .. }))) if now == context.epoch => Ok(()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(ProposeError::TimedOut.into()),
    }
}

/// Keeps the leader's projections up to date and tells the leader whom changes concern.
async fn follow(context: Arc<LeaderContext>, inbox: Arc<Inbox>, leader: ActorRef<LeaderMessage>) {
    let mut feed = context.node.changes();
    while let Some(item) = feed.next().await {
        let told = match item {
            FeedItem::StartOver(view) => match start_over(&context, view).await {
                Ok(()) => leader.send_message(LeaderMessage::Compare),
                Err(error) => {
                    tracing::error!(%error, "failed to read state, leading no more");
                    leader.stop(Some(error.to_string()));
                    return;
                }
            },
            FeedItem::Applied(batch) => {
                let is_first = inbox.add(update(&context, &batch));
                if is_first { leader.send_message(LeaderMessage::Wake) } else { Ok(()) }
            }
        };
        if told.is_err() {
            return;
        }
    }
}

async fn start_over(context: &LeaderContext, view: View) -> Result<(), TablesError> {
    let index = view.applied();
    let Some(built) = blocking(move || LeaderProjections::from_tables(&view)).await else { return Ok(()) };
    let built = built?;
    context.presence.update(built.presence.connected().clone());
    *context.projections_mut() = built;
    context.applied(index);
    Ok(())
}

fn update(context: &LeaderContext, batch: &AppliedBatch) -> Concerned {
    let mut projections = context.projections_mut();
    let concerned = projections.update(batch);
    if concerned.presence {
        context.presence.update(projections.presence.connected().clone());
    }
    drop(projections);
    context.applied(batch.index);
    concerned
}

async fn look_around(leader: ActorRef<LeaderMessage>) {
    loop {
        tokio::time::sleep(LOOK_AROUND_EVERY).await;
        if leader.send_message(LeaderMessage::LookAround).is_err() {
            return;
        }
    }
}

async fn compare(leader: ActorRef<LeaderMessage>) {
    loop {
        tokio::time::sleep(COMPARE_EVERY).await;
        if leader.send_message(LeaderMessage::Compare).is_err() {
            return;
        }
    }
}

impl LeaderState {
    /// Starts an actor for everything that needs one and has none.
    async fn spawn_missing(&mut self, myself: &ActorRef<LeaderMessage>) -> Result<(), ActorProcessingErr> {
        for controller in self.controllers_in_state()? {
            if !self.children.contains_key(&controller) {
                self.spawn(controller, myself).await?;
            }
        }
        Ok(())
    }

    /// Starts an actor, unless it failed and must rest.
    async fn spawn(&mut self, controller: Controller, myself: &ActorRef<LeaderMessage>) -> Result<(), ActorProcessingErr> {
        if self.resting.get(&controller).is_some_and(|until| Instant::now() < *until) {
            return Ok(());
        }
        self.resting.remove(&controller);
        let waker = controller.spawn(Arc::clone(&self.context), myself.get_cell()).await?;
        self.controllers.insert(waker.id(), controller.clone());
        self.children.insert(controller, waker);
        Ok(())
    }

    /// Records which subjects' actors fail again and again, and which do so no longer.
    async fn record_failures(&self) -> Result<(), ActorProcessingErr> {
        let now = Instant::now();
        let is_failing = |failed: &Failed| failed.failures.is_failing(now);
        let failing = self.failures.iter().filter(|(_, failed)| is_failing(failed));
        let failing = failing.map(|(controller, failed)| (controller.subject(), failed.why.clone())).collect();
        let recorded: Vec<ActorFailure> = self.context.node.view().scan(&Scan::all(), SCAN_RECORDS_MAX)?;
        for (subject, why) in actor_failure::changes(&recorded, &failing) {
            match self.context.propose("leader", ClusterAction::RecordActorFailure { subject, why }).await {
                Ok(_) => {}
                // The next failure, or its end, tries again.
                Err(error) => tracing::warn!(%error, "failed to record which actors fail"),
            }
        }
        Ok(())
    }

    /// Declares those targets lost that have been gone for longer than the grace. What fails is tried again the next time.
    async fn declare_lost(&self) -> Result<(), ActorProcessingErr> {
        let targets = {
            let view = self.context.node.view();
            let cluster: Cluster = view.get(&Key::all())?.unwrap_or_default();
            let (_, gone) = self.context.presence.of(&RoaringBitmap::from_iter(0..cluster.next_target));
            let mut targets = gone - lost(&view)?;
            for index in targets.clone() {
                if view.get::<Target>(&key(index))?.is_none() {
                    targets.remove(index);
                }
            }
            targets
        };
        if targets.is_empty() {
            return Ok(());
        }
        let count = targets.len();
        match self.context.propose("leader", FleetAction::DeclareLost { targets }).await {
            Ok(_) => tracing::info!(count, "targets declared lost"),
            Err(error) => tracing::warn!(count, %error, "failed to declare targets lost, trying again"),
        }
        Ok(())
    }

    /// Confirms the wall clock once it has been ahead of the adopted time by the same length for long enough, and warns until then.
    async fn confirm_time(&mut self) -> Result<(), ActorProcessingErr> {
        let cluster: Cluster = self.context.node.view().get(&Key::all())?.unwrap_or_default();
        if cluster.clock.disagreement.is_none() || self.time_asked.is_some_and(|asked| asked.elapsed() < CONFIRM_EVERY) {
            return Ok(());
        }
        self.time_asked = Some(Instant::now());
        match self.context.propose("leader", ClusterAction::ConfirmTime).await {
            Ok(_) => tracing::warn!("this server's clock was ahead steadily, adopting it"),
            Err(error) => tracing::warn!(%error, "this server's clock is ahead of what is plausible; check it"),
        }
        Ok(())
    }

    fn controllers_in_state(&self) -> Result<Vec<Controller>, TablesError> {
        let view = self.context.node.view();
        let mut controllers = vec![Controller::Scheduler];
        view.for_each(Scan::all(), |pipeline: Pipeline| controllers.push(Controller::Pipeline(pipeline.name)))?;
        view.for_each(Scan::all(), |open: OpenBuild| controllers.push(Controller::Build(open.build)))?;
        view.for_each(Scan::all(), |open: OpenRollout| controllers.push(Controller::Rollout(open.rollout)))?;
        Ok(controllers)
    }
}
