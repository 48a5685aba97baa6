//! What the leader's actors work with. Whatever they propose is void once another server leads.

use std::{
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use tokio::sync::watch;

use super::{leader_projections::LeaderProjections, presence::Presence, runner_liveness::RunnerLiveness};
use swell_artifacts::store::ContentStore;
use swell_git::Mirrors;
use swell_model::{
    cluster::Epoch,
    command::{Action, Outcome},
    interfaces::{Proposal, ProposeError, Proposer},
    principal::Principal,
};
use swell_raft::Node;
use swell_repositories::HostedRepositories;

/// How long a proposal of an actor may take.
pub(super) const PROPOSE_WITHIN: Duration = Duration::from_secs(10);

/// How long an actor waits until the projections show what it proposed.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);

/// What the leader's actors share.
pub(super) struct LeaderContext {
    pub node: Node,
    /// The leadership for which they act.
    pub epoch: Epoch,
    pub runners: Arc<RunnerLiveness>,
    pub presence: Presence,
    pub content: Arc<dyn ContentStore>,
    pub repositories: HostedRepositories,
    pub mirrors: Mirrors,
    projections: RwLock<LeaderProjections>,
    /// Log index of the projections.
    applied: watch::Sender<u64>,
}

impl LeaderContext {
    pub fn new(
        node: Node,
        epoch: Epoch,
        runners: Arc<RunnerLiveness>,
        content: Arc<dyn ContentStore>,
        repositories: HostedRepositories,
        mirrors: Mirrors,
    ) -> Self {
        let (projections, applied) = (RwLock::default(), watch::channel(0).0);
        Self { node, epoch, runners, presence: Presence::new(), content, repositories, mirrors, projections, applied }
    }

    /// The present projections. Not to be held across a wait.
    pub fn projections(&self) -> RwLockReadGuard<'_, LeaderProjections> {
        self.projections.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The projections, for the one task that keeps them up to date.
    pub fn projections_mut(&self) -> RwLockWriteGuard<'_, LeaderProjections> {
        self.projections.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The projections show what was applied up to `index`.
    pub fn applied(&self, index: u64) {
        self.applied.send_replace(index);
    }

    /// Waits until the projections show what was applied up to `index`.
    pub async fn shows(&self, index: u64) {
        let mut applied = self.applied.subscribe();
        if tokio::time::timeout(SHOWN_WITHIN, applied.wait_for(|applied| *applied >= index)).await.is_err() {
            tracing::warn!(index, "projections of the leader lag behind");
        }
    }

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
