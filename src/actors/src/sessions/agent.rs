//! One agent's session: lets it in, sends what changes and hears what it reports. The two directions do not wait for each other.

use std::{net::IpAddr, sync::Arc};

use futures::{
    SinkExt as _, StreamExt as _,
    channel::mpsc,
    future::{Either, select},
};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    outbox::{End, Outbox, Pending},
    shared::Shared,
};
use swell_model::{
    command::FleetAction,
    digest::Digest,
    fleet::{TargetInfo, observation::ReportOrigin},
    ids::AgentId,
    interfaces::{Link, Proposal, ProposeError, Proposer},
    principal::{Principal, Role},
    rollout::assignment::{DesiredTarget, Generation},
    units::Millis,
    wire::{AgentHello, AgentToServer, PROTOCOL_VERSION, Refusal, SILENCE_MAX, ServerToAgent},
};

/// Sessions of agents on one server.
const SESSIONS_MAX: usize = 25_000;

/// Sessions being opened at once; the others are told to come back.
pub(super) const OPENING_MAX: usize = 256;

/// Messages of one agent that are not yet applied; it is not read while it has so many.
const CREDITS: usize = 4;

/// How long an agent stays away that this server has no room for now.
const BUSY_FOR: Millis = Millis::from_secs(3);

/// An open session.
struct Session<'s> {
    shared: &'s Shared,
    target: u32,
    number: u64,
    outbox: Arc<Outbox>,
    /// What the agent follows, as far as this server knows.
    following: Generation,
    desired_hash: Option<Digest>,
    /// This server is behind what the agent follows: it looks again with each heartbeat.
    is_behind: bool,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.shared.sessions.close(self.target, self.number);
    }
}

/// Serves an agent until its session ends.
pub(super) async fn serve(shared: &Shared, link: Link<AgentToServer, ServerToAgent>) {
    let Link { mut incoming, mut outgoing } = link;
    let first = timeout(SILENCE_MAX.as_duration(), incoming.next()).await;
    let Ok(Some(AgentToServer::Hello(hello))) = first else {
        tracing::warn!("session did not begin with a hello, closing it");
        return;
    };
    let (name, agent, incarnation) = (hello.info.name.clone(), hello.agent.clone(), hello.incarnation);
    let (session, welcome) = match open(shared, hello).await {
        Ok(opened) => opened,
        Err(answer) => {
            tracing::warn!(target = %name, ?answer, "agent refused");
            send(&mut outgoing, answer).await;
            return;
        }
    };
    tracing::info!(target = %name, "agent connected");
    let (target, outbox) = (session.target, Arc::clone(&session.outbox));
    let telling = session.tell(welcome, outgoing);
    let hearing = hear(shared, target, &outbox, (agent, incarnation), &mut incoming);
    let why = match select(std::pin::pin!(hearing), std::pin::pin!(telling)).await {
        Either::Left((why, _)) | Either::Right((why, _)) => why,
    };
    tracing::info!(target = %name, why, "agent disconnected");
}

/// Lets an agent in; `Err` is what it is told instead.
async fn open(shared: &Shared, hello: AgentHello) -> Result<(Session<'_>, ServerToAgent), ServerToAgent> {
    let AgentHello { version, info, agent, following, desired_hash, reports_hash, .. } = hello;
    if version != PROTOCOL_VERSION {
        return Err(ServerToAgent::Refused(Refusal::Version { server: PROTOCOL_VERSION }));
    }
    // The newest is sent away, so that those who are here are served.
    let busy = ServerToAgent::Busy { retry_after: BUSY_FOR };
    let is_full = shared.sessions.len() >= SESSIONS_MAX || shared.reports.is_overloaded();
    let Some(_opening) = shared.opening.try_acquire().ok().filter(|_| !is_full && *shared.is_in_touch.borrow()) else {
        return Err(busy);
    };
    if timeout(SILENCE_MAX.as_duration(), shared.view.shows(1)).await.is_err() {
        return Err(busy);
    }
    let address = info.address;
    let target = join(shared, info, &agent).await?;
    let outbox = Arc::new(Outbox::new(shared.sessions.now()));
    let opened = shared.sessions.open(target, agent, address, Arc::clone(&outbox));
    let number = opened.map_err(|by| ServerToAgent::Refused(Refusal::NameInUse { by }))?;
    let reports_known = shared.view.read().observations.hash(target) == reports_hash;
    outbox.desired_changed();
    let session = Session { shared, target, number, outbox, following, desired_hash, is_behind: false };
    Ok((session, ServerToAgent::Welcome { reports_known }))
}

/// Records who joins, unless state knows all of it, and returns the target's number. Nothing is recorded of an agent that is refused.
async fn join(shared: &Shared, info: TargetInfo, agent: &AgentId) -> Result<u32, ServerToAgent> {
    let name = info.name.clone();
    let refused = |refusal| Err(ServerToAgent::Refused(refusal));
    let known = {
        let projections = shared.view.read();
        let mut others = projections.targets.sharing(info.address, info.ports, &name);
        // One that is gone may have left its address to this one.
        if let Some(other) = others.find(|other| projections.presence.connected().contains(other.index)) {
            return refused(Refusal::AddressInUse { by: other.info.name.clone() });
        }
        projections.targets.named(&name).cloned()
    };
    if let Some(target) = known {
        let other: Option<IpAddr> = shared.sessions.other_agent(target.index, agent);
        if let Some(by) = other {
            return refused(Refusal::NameInUse { by });
        }
        if target.info == info {
            return Ok(target.index);
        }
    }
    let principal = Principal::new(Role::Agent, name.as_str());
    match shared.node.propose(Proposal::new(FleetAction::Join { info }, principal)).await {
        Ok(outcome) => shared.view.shows(outcome.last_event.index).await,
        Err(ProposeError::Rejected(rejection)) if !rejection.retryable() => {
            return refused(Refusal::Rejected { code: rejection.code().to_owned(), reason: rejection.to_string() });
        }
        Err(error) => {
            tracing::warn!(target = %name, %error, "failed to record an agent that joins");
            return Err(ServerToAgent::Busy { retry_after: BUSY_FOR });
        }
    }
    let index = shared.view.read().targets.named(&name).map(|target| target.index);
    index.ok_or(ServerToAgent::Busy { retry_after: BUSY_FOR })
}

/// Hands over what the agent reports, until it is gone or says what it may not. Says why it ended.
async fn hear(
    shared: &Shared,
    target: u32,
    outbox: &Arc<Outbox>,
    (agent, incarnation): (AgentId, u64),
    incoming: &mut mpsc::Receiver<AgentToServer>,
) -> &'static str {
    let credits = Arc::new(Semaphore::new(CREDITS));
    while let Some(message) = incoming.next().await {
        outbox.heard(shared.sessions.now());
        let (sequence, reports) = match message {
            AgentToServer::Heartbeat => continue,
            AgentToServer::Hello(_) => return "second hello",
            AgentToServer::Report { sequence, reports } => (sequence, reports),
        };
        let origin = ReportOrigin { agent: agent.clone(), incarnation, sequence };
        outbox.hold_back(true);
        // The semaphores are never closed.
        let Ok(credit) = Arc::clone(&credits).acquire_owned().await else { return "server stops" };
        if !shared.reports.send(target, origin, reports, outbox, credit).await {
            return "server stops";
        }
        outbox.heard(shared.sessions.now());
        outbox.hold_back(false);
    }
    "connection closed"
}

impl Session<'_> {
    /// Sends what its outbox is filled with, until the session ends. Says why it ended.
    async fn tell(mut self, welcome: ServerToAgent, mut outgoing: mpsc::Sender<ServerToAgent>) -> &'static str {
        const DEAF: &str = "agent does not read";
        if !send(&mut outgoing, welcome).await {
            return DEAF;
        }
        loop {
            let Pending { desired, acknowledged, routed, heartbeat, end } = self.outbox.take().await;
            let looks = desired || heartbeat && self.is_behind;
            let desired = if looks { self.changed_desired().map(ServerToAgent::Desired) } else { None };
            let acknowledged = acknowledged.map(|sequence| ServerToAgent::Acknowledged { sequence });
            let routed = routed.map(|sequence| ServerToAgent::Routed { sequence });
            let heartbeat = heartbeat.then_some(ServerToAgent::Heartbeat);
            for frame in [acknowledged, routed, desired, heartbeat].into_iter().flatten() {
                if !send(&mut outgoing, frame).await {
                    return DEAF;
                }
            }
            let (last, why) = match end {
                None => continue,
                Some(End::Replaced) => return "replaced by a newer session",
                Some(End::Silent) => return "nothing heard for too long",
                Some(End::Busy { retry_after }) => (ServerToAgent::Busy { retry_after }, "sent to another server"),
                Some(End::Refused(refusal)) => (ServerToAgent::Refused(refusal), "reports rejected"),
            };
            send(&mut outgoing, last).await;
            return why;
        }
    }

    /// What the target should run, where the agent does not follow it yet and this server is not behind the agent.
    fn changed_desired(&mut self) -> Option<DesiredTarget> {
        let projections = self.shared.view.read();
        let hash = projections.assignments.hash(self.target)?;
        self.is_behind = projections.assignments.generation() < self.following;
        if self.is_behind || self.desired_hash == Some(hash) {
            return None;
        }
        let desired = projections.assignments.desired(self.target)?;
        self.desired_hash = Some(hash);
        self.following = desired.generation;
        Some(desired)
    }
}

/// Whether the agent took the frame.
async fn send(outgoing: &mut mpsc::Sender<ServerToAgent>, frame: ServerToAgent) -> bool {
    matches!(timeout(SILENCE_MAX.as_duration(), outgoing.send(frame)).await, Ok(Ok(())))
}
