//! The leader's part of the tree: one actor for the queue, and one for each pipeline, open build and open rollout. All of them are
//! respawned from state when another server takes over, and end here as soon as this one no longer leads.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};

use super::{
    board::Board,
    build::BuildDrive,
    drive::{self, Waker},
    events::Follower,
    pipeline::PipelineDrive,
    presence::Presence,
    rollout::RolloutDrive,
    scheduler::SchedulerDrive,
    supervise::{FORGIVEN_AFTER, Failures},
};
use swell_artifacts::store::ContentStore;
use swell_git::Mirrors;
use swell_model::{
    actor_failure::{self, ActorFailure},
    build::OpenBuild,
    cluster::Epoch,
    command::{Action, ClusterAction, Outcome},
    event::{Event, EventKind, Subject},
    ids::{BuildId, PipelineName, RolloutId},
    interfaces::{Proposal, ProposeError, Proposer},
    pipeline::{Pipeline, Source},
    principal::Principal,
    rollout::{OpenRollout, plan_input::connected},
    tables::{ReadTables, SCAN_RECORDS_MAX, Scan, TablesError},
};
use swell_raft::Node;
use swell_repositories::HostedRepositories;

/// How long a proposal of an actor may take.
const PROPOSE_WITHIN: Duration = Duration::from_secs(10);

/// What the leader's actors work with. `epoch` makes everything they propose void once another server leads.
pub(super) struct Leading {
    pub node: Node,
    pub epoch: Epoch,
    pub board: Arc<Board>,
    pub presence: Presence,
    pub content: Arc<dyn ContentStore>,
    pub repositories: HostedRepositories,
    pub mirrors: Mirrors,
}

impl Leading {
    /// Proposes as `actor`, in this epoch. Tests let an actor panic just after, when the step is agreed and the actor has not noted it.
    pub async fn propose(&self, actor: &str, action: impl Into<Action>) -> Result<Outcome, ProposeError> {
        self.propose_for(Principal::system(actor), actor, action).await
    }

    /// The same in the name of whoever caused it.
    pub async fn propose_for(
        &self,
        principal: Principal,
        actor: &str,
        action: impl Into<Action>,
    ) -> Result<Outcome, ProposeError> {
        let mut proposal = Proposal::new(action, principal);
        proposal.epoch = Some(self.epoch);
        let outcome = tokio::time::timeout(PROPOSE_WITHIN, self.node.propose(proposal)).await;
        swell_system::crash::panic_point(actor);
        outcome.unwrap_or(Err(ProposeError::TimedOut))
    }
}

/// What a leader drives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Charge {
    Scheduler,
    Pipeline(PipelineName),
    Build(BuildId),
    Rollout(RolloutId),
}

impl Charge {
    fn subject(&self) -> Subject {
        match self {
            Charge::Scheduler => Subject::Cluster,
            Charge::Pipeline(name) => Subject::Pipeline(name.clone()),
            Charge::Build(id) => Subject::Build(*id),
            Charge::Rollout(id) => Subject::Rollout(*id),
        }
    }
}

pub(super) struct Leader;

pub(super) enum LeaderMessage {
    /// These events were applied.
    Events(Vec<Event>),
    /// A child that failed may be started again, or has not failed for a while.
    Restart,
}

pub(super) struct LeaderState {
    leading: Arc<Leading>,
    children: BTreeMap<Charge, Waker>,
    charges: HashMap<ActorId, Charge>,
    failures: BTreeMap<Charge, Failed>,
    /// Failed, and not to be started again before then.
    resting: BTreeMap<Charge, Instant>,
    follower: tokio::task::JoinHandle<()>,
}

/// How a child failed lately.
#[derive(Default)]
struct Failed {
    failures: Failures,
    why: String,
}

impl Drop for LeaderState {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// What a leader is started with: everything of [`Leading`] but what it measures itself.
pub(super) struct LeaderArguments {
    pub node: Node,
    pub term: u64,
    pub server: u64,
    pub board: Arc<Board>,
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
        let epoch = Epoch(arguments.term);
        let leading = Leading {
            node: arguments.node,
            epoch,
            board: arguments.board,
            presence: Presence::new(),
            content: arguments.content,
            repositories: arguments.repositories,
            mirrors: arguments.mirrors,
        };
        begin_epoch(&leading, arguments.server).await?;
        swell_system::crash::panic_point("leader");
        let follower = tokio::spawn(follow(Follower::from_now(leading.node.clone()), myself.clone()));
        let mut state = LeaderState {
            leading: Arc::new(leading),
            children: BTreeMap::new(),
            charges: HashMap::new(),
            failures: BTreeMap::new(),
            resting: BTreeMap::new(),
            follower,
        };
        state.leading.presence.update(connected(&state.leading.node.view())?);
        state.staff(&myself).await?;
        state.mark().await?;
        tracing::info!(epoch = epoch.0, children = state.children.len(), "this server leads");
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<LeaderMessage>,
        message: LeaderMessage,
        state: &mut LeaderState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LeaderMessage::Events(events) => {
                swell_system::crash::panic_point("leader");
                if events.iter().any(|event| event.kind == EventKind::FleetPresenceChanged) {
                    state.leading.presence.update(connected(&state.leading.node.view())?);
                }
                state.staff(&myself).await?;
                for charge in events.iter().flat_map(|event| state.concerned(event)).collect::<BTreeSet<_>>() {
                    if let Some(child) = state.children.get(&charge) {
                        child.wake();
                    }
                }
            }
            LeaderMessage::Restart => {
                state.staff(&myself).await?;
                state.mark().await?;
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
                if let Some(charge) = state.charges.remove(&cell.get_id()) {
                    state.children.remove(&charge);
                    if state.failures.remove(&charge).is_some() {
                        state.mark().await?;
                    }
                }
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                let Some(charge) = state.charges.remove(&cell.get_id()) else { return Ok(()) };
                state.children.remove(&charge);
                let failed = state.failures.entry(charge.clone()).or_default();
                let delay = failed.failures.count(Instant::now());
                failed.why = error.to_string();
                tracing::error!(?charge, %error, retry_in_ms = delay.as_millis() as u64, "an actor failed; the others go on");
                state.resting.insert(charge, Instant::now() + delay);
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
            tracing::debug!("the leader stopped before a child could be started again");
        }
    });
}

/// Commits the beginning of this leadership. Only what is proposed after it can be this leader's.
async fn begin_epoch(leading: &Leading, server: u64) -> Result<(), ActorProcessingErr> {
    let action = ClusterAction::BeginEpoch { epoch: leading.epoch, server };
    let proposal = Proposal::new(action, Principal::system("leader"));
    match tokio::time::timeout(PROPOSE_WITHIN, leading.node.propose(proposal)).await {
        Ok(Ok(_)) => Ok(()),
        // This server leads the same term still, and its actors are started anew.
        Ok(Err(ProposeError::Rejected(swell_model::rejection::Rejection::StaleEpoch { now, .. }))) if now == leading.epoch => {
            Ok(())
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(ProposeError::TimedOut.into()),
    }
}

async fn follow(mut follower: Follower, leader: ActorRef<LeaderMessage>) {
    while let Some(read) = follower.next().await {
        match read {
            Ok(events) => {
                if leader.send_message(LeaderMessage::Events(events)).is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::error!(%error, "the leader cannot read the event log");
                leader.stop(Some(format!("the event log cannot be read: {error}")));
                return;
            }
        }
    }
}

impl LeaderState {
    /// Starts an actor for everything that needs one and has none.
    async fn staff(&mut self, myself: &ActorRef<LeaderMessage>) -> Result<(), ActorProcessingErr> {
        for charge in self.charges_in_state()? {
            if self.children.contains_key(&charge) || self.resting.get(&charge).is_some_and(|until| Instant::now() < *until) {
                continue;
            }
            self.resting.remove(&charge);
            let waker = self.spawn(&charge, myself).await?;
            self.charges.insert(waker.id(), charge.clone());
            self.children.insert(charge, waker);
        }
        Ok(())
    }

    /// Marks the subjects whose actors fail again and again, and takes the mark from those whose actors do so no longer.
    async fn mark(&self) -> Result<(), ActorProcessingErr> {
        let now = Instant::now();
        let is_failing = |failed: &Failed| failed.failures.is_failing(now);
        let failing = self.failures.iter().filter(|(_, failed)| is_failing(failed));
        let failing = failing.map(|(charge, failed)| (charge.subject(), failed.why.clone())).collect();
        let marked: Vec<ActorFailure> = self.leading.node.view().scan(&Scan::all(), SCAN_RECORDS_MAX)?;
        for (subject, why) in actor_failure::changes(&marked, &failing) {
            match self.leading.propose("leader", ClusterAction::RecordActorFailure { subject, why }).await {
                Ok(_) => {}
                // The next failure, or its end, tries again.
                Err(error) => tracing::warn!(%error, "what fails cannot be marked"),
            }
        }
        Ok(())
    }

    fn charges_in_state(&self) -> Result<Vec<Charge>, TablesError> {
        let view = self.leading.node.view();
        let mut charges = vec![Charge::Scheduler];
        charges
            .extend(view.scan::<Pipeline>(&Scan::all(), SCAN_RECORDS_MAX)?.into_iter().map(|kept| Charge::Pipeline(kept.name)));
        charges.extend(view.scan::<OpenBuild>(&Scan::all(), SCAN_RECORDS_MAX)?.into_iter().map(|open| Charge::Build(open.build)));
        charges.extend(
            view.scan::<OpenRollout>(&Scan::all(), SCAN_RECORDS_MAX)?.into_iter().map(|open| Charge::Rollout(open.rollout)),
        );
        Ok(charges)
    }

    async fn spawn(&self, charge: &Charge, myself: &ActorRef<LeaderMessage>) -> Result<Waker, SpawnErr> {
        let (leading, supervisor) = (Arc::clone(&self.leading), myself.get_cell());
        match charge {
            Charge::Scheduler => drive::spawn(SchedulerDrive, leading, supervisor).await,
            Charge::Pipeline(name) => drive::spawn(PipelineDrive::new(name.clone()), leading, supervisor).await,
            Charge::Build(id) => drive::spawn(BuildDrive::new(*id), leading, supervisor).await,
            Charge::Rollout(id) => drive::spawn(RolloutDrive::new(*id), leading, supervisor).await,
        }
    }

    /// Which of the leader's charges an event concerns.
    fn concerned(&self, event: &Event) -> Vec<Charge> {
        let rollouts = || self.children.keys().filter(|charge| matches!(charge, Charge::Rollout(_))).cloned();
        match &event.subject {
            Subject::Build(id) => vec![Charge::Scheduler, Charge::Build(*id)],
            Subject::Runner(_) => vec![Charge::Scheduler],
            Subject::Pipeline(name) => vec![Charge::Pipeline(name.clone()), Charge::Scheduler],
            Subject::Rollout(id) if event.kind.is_rollout_transition() => rollouts().chain([Charge::Rollout(*id)]).collect(),
            Subject::Rollout(id) => vec![Charge::Rollout(*id)],
            Subject::Environment(_) | Subject::Target(_) => rollouts().collect(),
            Subject::Cluster if event.kind == EventKind::FleetPresenceChanged => rollouts().collect(),
            Subject::Repository(repository) => self.pipelines_of(repository),
            Subject::Cluster | Subject::Artifact(_) | Subject::Release(_) => Vec::new(),
        }
    }

    fn pipelines_of(&self, repository: &swell_model::ids::RepositoryName) -> Vec<Charge> {
        let pipelines = self.leading.node.view().scan::<Pipeline>(&Scan::all(), SCAN_RECORDS_MAX).unwrap_or_default();
        let of_it = |pipeline: &Pipeline| matches!(&pipeline.source, Source::Hosted(name) if name == repository);
        pipelines.into_iter().filter(of_it).map(|pipeline| Charge::Pipeline(pipeline.name)).collect()
    }
}
