//! One session each: an agent's frames on one side, the fleet on the other. Ends when either side goes silent.

use std::net::IpAddr;

use futures::{SinkExt as _, StreamExt as _};
use tokio::{
    sync::{oneshot, watch},
    time::{interval, timeout},
};

use super::fleet::{FleetMessage, Inbox, Opening};
use swell_model::{
    command::FleetAction,
    fleet::{Target, TargetByName, TargetInfo, observation::Report},
    ids::TargetName,
    interfaces::{Link, Proposal, ProposeError, Proposer},
    principal::{Principal, Role},
    tables::{ReadTables, TablesError, key},
    wire::{AgentToServer, HEARTBEAT_EVERY, SILENCE_MAX, ServerToAgent},
};
use swell_raft::Node;

/// Why a session cannot begin.
#[derive(Debug, thiserror::Error)]
enum RefusedError {
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error(transparent)]
    Tables(#[from] TablesError),
    #[error("the server is starting; try again in a moment")]
    Starting,
    #[error("the name {name} is used by the agent at {address}: give one of them another with --name")]
    Taken { name: TargetName, address: IpAddr },
}

/// Serves an agent until its session ends.
pub(super) async fn agent(node: &Node, fleet: &Inbox, mut link: Link<AgentToServer, ServerToAgent>) {
    let Ok(Some(AgentToServer::Hello { info, agent, .. })) = timeout(SILENCE_MAX.as_duration(), link.incoming.next()).await
    else {
        tracing::warn!("a session did not begin with who it is");
        return;
    };
    let name = info.name.clone();
    let (desired, changes) = watch::channel(None);
    let opening = Opening { agent, address: info.address, desired };
    let (index, session) = match begin(node, fleet, info, opening).await {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(target = %name, %error, "an agent is refused");
            if link.outgoing.send(ServerToAgent::Refused(error.to_string())).await.is_err() {
                tracing::debug!(target = %name, "an agent left before it was refused");
            }
            return;
        }
    };
    tracing::info!(target = %name, index, "an agent is connected");
    let why = converse(fleet, index, changes, &mut link).await;
    tracing::info!(target = %name, index, why, "an agent is gone");
    fleet.send(FleetMessage::Closed { index, session });
}

/// Makes the agent the target of that name, and returns the target's number and the session's. Refused before anything is recorded where
/// another agent is that target.
async fn begin(node: &Node, fleet: &Inbox, info: TargetInfo, opening: Opening) -> Result<(u32, u64), RefusedError> {
    let name = info.name.clone();
    if let Some(target) = known(node, &name)? {
        let (index, agent) = (target.index, opening.agent.clone());
        let other = asked(fleet, |answer| FleetMessage::Claimed { index, agent, answer }).await?;
        other.map_or(Ok(()), |address| Err(RefusedError::Taken { name: name.clone(), address }))?;
    }
    let index = join(node, info).await?;
    let opened = asked(fleet, |answer| FleetMessage::Opened { index, opening, answer }).await?;
    Ok((index, opened.map_err(|address| RefusedError::Taken { name, address })?))
}

/// What the fleet answers.
async fn asked<T>(fleet: &Inbox, question: impl FnOnce(oneshot::Sender<T>) -> FleetMessage) -> Result<T, RefusedError> {
    let (answer, answered) = oneshot::channel();
    if !fleet.send(question(answer)) {
        return Err(RefusedError::Starting);
    }
    answered.await.map_err(|_| RefusedError::Starting)
}

/// Records who joins, unless state knows all of it, and returns its number.
async fn join(node: &Node, info: TargetInfo) -> Result<u32, RefusedError> {
    let name = info.name.clone();
    if let Some(target) = known(node, &name)?.filter(|target| target.info == info) {
        return Ok(target.index);
    }
    let principal = Principal::new(Role::Agent, name.as_str());
    node.propose(Proposal::new(FleetAction::Join { info }, principal)).await?;
    known(node, &name)?.map(|target| target.index).ok_or(RefusedError::Starting)
}

fn known(node: &Node, name: &TargetName) -> Result<Option<Target>, TablesError> {
    let view = node.view();
    let by_name: Option<TargetByName> = view.get(&key(name.as_str()))?;
    by_name.map(|by_name| view.get(&key(by_name.index))).transpose().map(Option::flatten)
}

/// Tells what changes and hears what is said, until either side is gone. Says why it ended.
async fn converse(
    fleet: &Inbox,
    index: u32,
    mut changes: watch::Receiver<Option<swell_model::rollout::assignment::DesiredTarget>>,
    link: &mut Link<AgentToServer, ServerToAgent>,
) -> &'static str {
    let mut heartbeat = interval(HEARTBEAT_EVERY.as_duration());
    loop {
        let frame = tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    // A newer session of the same target took this one's place, or the fleet is started again.
                    return "its place was taken";
                }
                let now = changes.borrow_and_update().clone();
                now.map(ServerToAgent::Desired)
            }
            // Whoever carries the frames ends a link that is silent.
            said = link.incoming.next() => match said {
                Some(AgentToServer::Report(reports)) => {
                    if !gather(fleet, index, reports).await {
                        return "its report cannot be recorded";
                    }
                    None
                }
                Some(AgentToServer::Heartbeat) => None,
                Some(AgentToServer::Hello { .. }) => return "it said twice who it is",
                None => return "the connection ended",
            },
            _ = heartbeat.tick() => Some(ServerToAgent::Heartbeat),
        };
        if let Some(frame) = frame {
            match timeout(SILENCE_MAX.as_duration(), link.outgoing.send(frame)).await {
                Ok(Ok(())) => {}
                _ => return "it does not take what it is told",
            }
        }
    }
}

/// Gives reports to the fleet and waits until they are recorded, so that an agent cannot say more than can be kept.
async fn gather(fleet: &Inbox, index: u32, reports: Vec<Report>) -> bool {
    let (answer, recorded) = oneshot::channel();
    if !fleet.send(FleetMessage::Reports { index, reports, answer }) {
        return false;
    }
    timeout(SILENCE_MAX.as_duration(), recorded).await.is_ok_and(|recorded| recorded.is_ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
