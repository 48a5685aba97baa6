//! The root of a node's tree: keeps the runner and, while this server leads, the leader alive; the sessions' tasks keep themselves.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};

use super::{
    leader::{Leader, LeaderArguments, LeaderMessage},
    runner::{LocalRunner, RunnerActor, RunnerArguments, RunnerMessage},
    runner_liveness::RunnerLiveness,
    sessions::{SessionTasks, Sessions},
    supervise::Failures,
};
use swell_artifacts::store::ContentStore;
use swell_git::Mirrors;
use swell_raft::{Leadership, Node};
use swell_repositories::HostedRepositories;

/// How long a stopping tree may take.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// What a node's actors work with; `main` wires it.
pub struct Options {
    /// The node that agrees.
    pub node: Node,
    /// This server's number.
    pub server: u64,
    /// The store of artifacts, logs and bundles, shared by the cluster.
    pub content: Arc<dyn ContentStore>,
    /// The repositories that Groundswell hosts.
    pub repositories: HostedRepositories,
    /// Mirrors of repositories, for looking at pushes.
    pub mirrors: Mirrors,
    /// The runner on this server, where it is one.
    pub runner: Option<LocalRunner>,
}

/// A running tree.
pub struct Handle {
    root: ActorRef<NodeMessage>,
    ended: tokio::task::JoinHandle<()>,
    sessions: Sessions,
    _session_tasks: SessionTasks,
}

impl Handle {
    /// Where `http` hands over the sessions of agents and gateways.
    pub fn sessions(&self) -> Sessions {
        self.sessions.clone()
    }

    /// Ends when the tree does without having been told to: its root failed, and nothing here would be driven any more.
    pub async fn failed(&mut self) {
        if let Err(error) = (&mut self.ended).await {
            tracing::error!(%error, "the root of the actors cannot be waited for");
        }
    }

    /// Stops every actor. What was in flight is done by whoever leads next: containers and instances go on.
    pub async fn stop(self) {
        self.root.stop(Some("the server stops".to_owned()));
        if tokio::time::timeout(STOP_WITHIN, self.ended).await.is_err() {
            tracing::warn!("the actors did not stop in time");
        }
    }
}

/// Starts a node's tree.
///
/// # Errors
/// When an actor cannot be started at all.
pub async fn start(options: Options) -> Result<Handle, SpawnErr> {
    let (node, content) = (options.node.clone(), Arc::clone(&options.content));
    let (sessions, tasks) = Sessions::start(node, options.server, content);
    let (root, ended) = Actor::spawn(None, NodeActor, options).await?;
    Ok(Handle { root, ended, sessions, _session_tasks: tasks })
}

struct NodeActor;

enum NodeMessage {
    Leadership(Leadership),
    Restart(Child),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Child {
    Runner,
    Leader,
}

struct NodeState {
    options: Options,
    runners: Arc<RunnerLiveness>,
    leads: Option<u64>,
    runner: Option<ActorRef<RunnerMessage>>,
    leader: Option<ActorRef<LeaderMessage>>,
    failures: [Failures; 2],
    watcher: tokio::task::JoinHandle<()>,
}

impl Drop for NodeState {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Actor for NodeActor {
    type Msg = NodeMessage;
    type State = NodeState;
    type Arguments = Options;

    async fn pre_start(&self, myself: ActorRef<NodeMessage>, options: Options) -> Result<NodeState, ActorProcessingErr> {
        let watcher = tokio::spawn(watch_leadership(options.node.clone(), myself.clone()));
        let mut state = NodeState {
            options,
            runners: Arc::new(RunnerLiveness::new()),
            leads: None,
            runner: None,
            leader: None,
            failures: Default::default(),
            watcher,
        };
        state.start(Child::Runner, &myself).await;
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<NodeMessage>,
        message: NodeMessage,
        state: &mut NodeState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            NodeMessage::Leadership(leadership) => {
                let leads = leadership.is_leader.then_some(leadership.term);
                if leads == state.leads {
                    return Ok(());
                }
                state.leads = leads;
                if let Some(leader) = state.leader.take() {
                    tracing::info!(term = leadership.term, "this server no longer leads that term");
                    leader.stop(Some("another leadership has begun".to_owned()));
                }
                state.start(Child::Leader, &myself).await;
            }
            NodeMessage::Restart(child) => state.start(child, &myself).await,
        }
        swell_system::crash::panic_point("node");
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<NodeMessage>,
        event: SupervisionEvent,
        state: &mut NodeState,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, why) = match &event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, error.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, why) => (cell, why.clone().unwrap_or_default()),
            _ => return Ok(()),
        };
        // A leader that was stopped on purpose was forgotten before.
        let Some(child) = state.forget(cell.get_id()) else { return Ok(()) };
        state.restart_later(child, &why, myself);
        Ok(())
    }
}

async fn watch_leadership(node: Node, root: ActorRef<NodeMessage>) {
    let mut leadership = node.leadership();
    loop {
        let now = *leadership.borrow_and_update();
        if root.send_message(NodeMessage::Leadership(now)).is_err() || leadership.changed().await.is_err() {
            return;
        }
    }
}

impl NodeState {
    async fn start(&mut self, child: Child, myself: &ActorRef<NodeMessage>) {
        let started = match child {
            Child::Runner if self.runner.is_none() => self.start_runner(myself).await,
            Child::Leader if self.leader.is_none() => self.start_leader(myself).await,
            _ => Ok(()),
        };
        if let Err(error) = started {
            self.restart_later(child, &error.to_string(), myself.clone());
        }
    }

    async fn start_runner(&mut self, myself: &ActorRef<NodeMessage>) -> Result<(), SpawnErr> {
        let Some(local) = self.options.runner.clone() else { return Ok(()) };
        let arguments = RunnerArguments {
            local,
            node: self.options.node.clone(),
            repositories: self.options.repositories.clone(),
            liveness: Arc::clone(&self.runners),
        };
        let (runner, _) = Actor::spawn_linked(None, RunnerActor, arguments, myself.get_cell()).await?;
        self.runner = Some(runner);
        Ok(())
    }

    async fn start_leader(&mut self, myself: &ActorRef<NodeMessage>) -> Result<(), SpawnErr> {
        let Some(term) = self.leads else { return Ok(()) };
        let arguments = LeaderArguments {
            node: self.options.node.clone(),
            term,
            server: self.options.server,
            runners: Arc::clone(&self.runners),
            content: Arc::clone(&self.options.content),
            repositories: self.options.repositories.clone(),
            mirrors: self.options.mirrors.clone(),
        };
        let (leader, _) = Actor::spawn_linked(None, Leader, arguments, myself.get_cell()).await?;
        self.leader = Some(leader);
        Ok(())
    }

    /// Which child that was; it is started again later.
    fn forget(&mut self, id: ActorId) -> Option<Child> {
        if self.runner.take_if(|runner| runner.get_id() == id).is_some() {
            return Some(Child::Runner);
        }
        self.leader.take_if(|leader| leader.get_id() == id).map(|_| Child::Leader)
    }

    fn restart_later(&mut self, child: Child, why: &str, myself: ActorRef<NodeMessage>) {
        let delay = self.failures[child as usize].count(Instant::now());
        tracing::error!(?child, why, retry_in_ms = delay.as_millis() as u64, "an actor failed; the others go on");
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            if myself.send_message(NodeMessage::Restart(child)).is_err() {
                tracing::debug!(?child, "the node stopped before a child could be started again");
            }
        });
    }
}
