//! The agents and gateways connected to this server: tells each what it should do whenever that changes, and gathers what they say
//! into one batch for all of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, RwLock},
    time::Duration,
};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use roaring::RoaringBitmap;
use tokio::sync::{oneshot, watch};

use super::{events::Follower, sessions};
use swell_model::{
    command::{Action, FleetAction},
    event::{Event, EventKind},
    fleet::{Target, TargetByName, observation::Report},
    ids::PipelineName,
    interfaces::{Link, Proposal, ProposeError, Proposer, SessionSink},
    principal::Principal,
    rollout::assignment::{Concerned, DesiredReader, DesiredTarget, concerned},
    routing::{
        derive::route_table,
        table::{GatewayHello, GatewayToServer, RouteTable, ServerToGateway},
    },
    tables::{ReadTables, TablesError, key},
    wire::{AgentId, AgentToServer, ServerToAgent},
};
use swell_raft::Node;

/// How often reports and presence are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Presence is proposed on every so many-th tick at most: once a second.
const PRESENCE_EVERY_TICKS: u32 = 10;

/// How many reports one batch holds at the most; the others wait for the next.
const REPORTS_AT_ONCE: usize = 5000;

/// How long a batch may take to be applied.
const PROPOSE_WITHIN: Duration = Duration::from_secs(10);

/// What the sessions tell the fleet. Each waits for its answer, so at most one message a session is in the mailbox.
pub(super) enum FleetMessage {
    /// An agent wants to be this target; answered with the address of another agent that is.
    Claimed { index: u32, agent: AgentId, answer: oneshot::Sender<Option<IpAddr>> },
    /// An agent joined and is this target; answered with the session's number, or refused as [`FleetMessage::Claimed`] is.
    Opened { index: u32, opening: Opening, answer: oneshot::Sender<Result<u64, IpAddr>> },
    /// An agent's session is over; its number tells whether a newer one took its place.
    Closed { index: u32, session: u64 },
    /// What an agent said; answered when it is in the next batch.
    Reports { index: u32, reports: Vec<Report>, answer: oneshot::Sender<()> },
    /// Someone wants the route table.
    Routes { answer: oneshot::Sender<watch::Receiver<Arc<RouteTable>>> },
    /// These events were applied.
    Events(Vec<Event>),
    /// Time to propose what was gathered.
    Tick,
}

pub(super) struct FleetArguments {
    pub node: Node,
    pub server: u64,
}

/// Who is recorded as connected; none where that is not known.
#[derive(Default)]
struct Recorded(Option<RoaringBitmap>);

impl Recorded {
    /// Whether `connected` is to be proposed. From then on it is not known what is recorded, until the proposal has succeeded: one that
    /// seems to fail may yet be applied.
    fn must_propose(&mut self, connected: &RoaringBitmap) -> bool {
        let differs = self.0.as_ref() != Some(connected);
        if differs {
            self.0 = None;
        }
        differs
    }
}

/// An agent's side of a session.
pub(super) struct Opening {
    /// Which agent.
    pub agent: AgentId,
    /// Where it says it is.
    pub address: IpAddr,
    /// How it is told what to run.
    pub desired: watch::Sender<Option<DesiredTarget>>,
}

struct Session {
    number: u64,
    opening: Opening,
}

pub(super) struct FleetState {
    node: Node,
    server: u64,
    sessions: HashMap<u32, Session>,
    next_session: u64,
    reports: BTreeMap<(u32, PipelineName), Report>,
    waiting: Vec<oneshot::Sender<()>>,
    recorded: Recorded,
    ticks: u32,
    routes: watch::Sender<Arc<RouteTable>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for FleetState {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

pub(super) struct Fleet;

impl Actor for Fleet {
    type Msg = FleetMessage;
    type State = FleetState;
    type Arguments = FleetArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<FleetMessage>,
        arguments: FleetArguments,
    ) -> Result<FleetState, ActorProcessingErr> {
        let FleetArguments { node, server } = arguments;
        let follower = Follower::from_now(node.clone());
        let (routes, _) = watch::channel(Arc::new(table(&node)?));
        let tasks = vec![tokio::spawn(follow(follower, myself.clone())), tokio::spawn(tick(myself))];
        Ok(FleetState {
            node,
            server,
            sessions: HashMap::new(),
            next_session: 1,
            reports: BTreeMap::new(),
            waiting: Vec::new(),
            recorded: Recorded::default(),
            ticks: 0,
            routes,
            tasks,
        })
    }

    async fn handle(
        &self,
        _: ActorRef<FleetMessage>,
        message: FleetMessage,
        state: &mut FleetState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            FleetMessage::Claimed { index, agent, answer } => {
                if answer.send(state.other_agent(index, &agent)).is_err() {
                    tracing::debug!(index, "an agent left before it was told whether its name is free");
                }
            }
            FleetMessage::Opened { index, opening, answer } => {
                if let Some(other) = state.other_agent(index, &opening.agent) {
                    // Whoever asked hears it; one that has left need not.
                    answer.send(Err(other)).ok();
                    return Ok(());
                }
                let number = state.next_session;
                state.next_session += 1;
                state.sessions.insert(index, Session { number, opening });
                state.tell(&[index])?;
                // The session may have ended while it waited: then it is closed next.
                if answer.send(Ok(number)).is_err() {
                    state.sessions.remove(&index);
                }
            }
            FleetMessage::Closed { index, session } => {
                if state.sessions.get(&index).is_some_and(|open| open.number == session) {
                    state.sessions.remove(&index);
                }
            }
            FleetMessage::Reports { index, reports, answer } => {
                state.reports.extend(reports.into_iter().map(|report| ((index, report.pipeline.clone()), report)));
                state.waiting.push(answer);
            }
            FleetMessage::Routes { answer } => {
                if answer.send(state.routes.subscribe()).is_err() {
                    tracing::debug!("a gateway left before it got its routes");
                }
            }
            FleetMessage::Events(events) => {
                swell_system::crash::panic_point("fleet");
                state.tell_concerned(&events)?;
                if events.iter().any(changes_routes) {
                    state.route()?;
                }
            }
            FleetMessage::Tick => {
                state.propose_presence().await;
                state.propose_reports().await;
            }
        }
        Ok(())
    }
}

/// Whether gateways may have to route otherwise after this event.
fn changes_routes(event: &Event) -> bool {
    event.kind == EventKind::FleetReported || concerned(event) != Concerned::Nobody
}

fn table(node: &Node) -> Result<RouteTable, TablesError> {
    let view = node.view();
    route_table(&view, view.applied())
}

async fn follow(mut follower: Follower, fleet: ActorRef<FleetMessage>) {
    while let Some(read) = follower.next().await {
        match read {
            Ok(events) => {
                if fleet.send_message(FleetMessage::Events(events)).is_err() {
                    return;
                }
            }
            Err(error) => {
                fleet.stop(Some(format!("the event log cannot be read: {error}")));
                return;
            }
        }
    }
}

async fn tick(fleet: ActorRef<FleetMessage>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if fleet.send_message(FleetMessage::Tick).is_err() {
            return;
        }
    }
}

impl FleetState {
    /// Where another agent is that has a live session as this target. The same agent takes its own session's place.
    fn other_agent(&self, index: u32, agent: &AgentId) -> Option<IpAddr> {
        let open = &self.sessions.get(&index)?.opening;
        (open.agent != *agent && !open.desired.is_closed()).then_some(open.address)
    }

    /// Tells those targets what they should run for which these events may have changed it.
    fn tell_concerned(&self, events: &[Event]) -> Result<(), TablesError> {
        let view = self.node.view();
        let mut targets = BTreeSet::new();
        for event in events {
            match concerned(event) {
                Concerned::Nobody => {}
                Concerned::Target(name) => {
                    targets.extend(view.get::<TargetByName>(&key(name.as_str()))?.map(|by_name| by_name.index));
                }
                Concerned::Everyone => {
                    targets.extend(self.sessions.keys());
                    break;
                }
            }
        }
        drop(view);
        if targets.is_empty() { Ok(()) } else { self.tell(&Vec::from_iter(targets)) }
    }

    /// Tells these targets what they should run, where it differs from what they were told last.
    fn tell(&self, targets: &[u32]) -> Result<(), TablesError> {
        let view = self.node.view();
        let mut reader = DesiredReader::new(&view, view.applied())?;
        for index in targets {
            let Some(session) = self.sessions.get(index) else { continue };
            let Some(target) = view.get::<Target>(&key(*index))? else { continue };
            let now = reader.of(&target)?;
            session.opening.desired.send_if_modified(|last| {
                let same = last.as_ref().is_some_and(|last| last.deployments == now.deployments);
                if !same {
                    *last = Some(now);
                }
                !same
            });
        }
        Ok(())
    }

    fn route(&self) -> Result<(), TablesError> {
        let now = table(&self.node)?;
        self.routes.send_if_modified(|last| {
            let same = last.services == now.services;
            if !same {
                *last = Arc::new(now);
            }
            !same
        });
        Ok(())
    }

    /// Proposes who is connected, if that changed. A batch that fails is proposed again on a later tick.
    async fn propose_presence(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        if !self.ticks.is_multiple_of(PRESENCE_EVERY_TICKS) {
            return;
        }
        let connected: RoaringBitmap = self.sessions.keys().copied().collect();
        if !self.recorded.must_propose(&connected) {
            return;
        }
        let action = FleetAction::Presence { server: self.server, connected: connected.clone() };
        match propose(&self.node, action).await {
            Ok(()) => self.recorded = Recorded(Some(connected)),
            Err(error) => tracing::warn!(%error, "who is connected cannot be recorded yet"),
        }
    }

    async fn propose_reports(&mut self) {
        if self.reports.is_empty() {
            return;
        }
        let mut batch = Vec::new();
        while batch.len() < REPORTS_AT_ONCE {
            let Some(((index, pipeline), report)) = self.reports.pop_first() else { break };
            batch.push(((index, pipeline), report));
        }
        let reports = batch.iter().map(|((index, _), report)| (*index, report.clone())).collect();
        let proposed = propose(&self.node, FleetAction::Report { reports }).await;
        swell_system::crash::panic_point("fleet");
        match proposed {
            Ok(()) if self.reports.is_empty() => {
                for waiting in self.waiting.drain(..) {
                    if waiting.send(()).is_err() {
                        tracing::debug!("an agent left before its report was recorded");
                    }
                }
            }
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "reports cannot be recorded yet");
                // What was said since is newer.
                for (key, report) in batch {
                    self.reports.entry(key).or_insert(report);
                }
            }
        }
    }
}

async fn propose(node: &Node, action: impl Into<Action>) -> Result<(), ProposeError> {
    let proposal = Proposal::new(action, Principal::system("fleet"));
    match tokio::time::timeout(PROPOSE_WITHIN, node.propose(proposal)).await {
        Ok(result) => result.map(|_| ()),
        Err(_) => Err(ProposeError::TimedOut),
    }
}

/// Where the present fleet actor is reached: it changes when the actor is started again.
#[derive(Clone)]
pub(super) struct Inbox(Arc<RwLock<Option<ActorRef<FleetMessage>>>>);

impl Inbox {
    /// From now on, this is the fleet.
    pub fn connect(&self, fleet: ActorRef<FleetMessage>) {
        *self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(fleet);
    }

    /// Sends a message; false where there is no fleet at the moment.
    pub fn send(&self, message: FleetMessage) -> bool {
        let fleet = self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        fleet.is_some_and(|fleet| fleet.send_message(message).is_ok())
    }
}

/// Hands sessions over to the fleet. Cheap to clone.
#[derive(Clone)]
pub struct FleetHandle {
    node: Node,
    inbox: Inbox,
}

impl FleetHandle {
    pub(super) fn new(node: Node) -> (Self, Inbox) {
        let inbox = Inbox(Arc::default());
        (Self { node, inbox: inbox.clone() }, inbox)
    }
}

impl SessionSink for FleetHandle {
    fn agent(&self, link: Link<AgentToServer, ServerToAgent>) -> futures::future::BoxFuture<'_, ()> {
        Box::pin(sessions::agent(&self.node, &self.inbox, link))
    }

    fn gateway(&self, hello: GatewayHello, link: Link<GatewayToServer, ServerToGateway>) -> futures::future::BoxFuture<'_, ()> {
        Box::pin(sessions::gateway(&self.inbox, hello, link))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_came_back_is_recorded_although_its_leaving_seemed_not_to_be() {
        let (both, one) = (RoaringBitmap::from([1, 2]), RoaringBitmap::from([1]));
        let mut recorded = Recorded(Some(both.clone()));
        assert!(!recorded.must_propose(&both), "nothing has changed");
        assert!(recorded.must_propose(&one));
        // That proposal timed out: it may be applied or not.
        assert!(recorded.must_propose(&both), "else the agent that came back may stay away in state");
    }
}
