//! Records which agents this server is connected to, once a second at most; and ends all sessions while it cannot record anything, so that
//! agents look for a server that can.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    outbox::End,
    table::{SessionTable, TICK},
    view::FleetView,
};
use swell_model::{
    command::FleetAction,
    interfaces::{Proposal, ProposeError, Proposer},
    principal::Principal,
    units::Millis,
};
use swell_raft::Node;

/// At most one command in this time.
const PRESENCE_EVERY: Duration = Duration::from_secs(1);

/// How long a command may take.
const PROPOSE_WITHIN: Duration = Duration::from_secs(10);

/// How long this server may know no leader before its sessions end.
const LEASE: Duration = Duration::from_secs(10);

/// How long agents stay away from a server that lost touch with the majority.
const AWAY: Millis = Millis::from_secs(5);

/// Records presence until the server stops. What is recorded is read from state, so that a command that seemed to fail is noticed, and
/// what the leader took away is recorded again.
pub(super) async fn record_presence(
    node: Node,
    server: u64,
    sessions: Arc<SessionTable>,
    view: Arc<FleetView>,
) -> Result<(), ProposeError> {
    view.shows(1).await;
    let mut ticks = interval(PRESENCE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let connected = sessions.connected();
        let is_recorded = match view.read().presence.of_server(server) {
            Some(recorded) => *recorded == connected,
            None => connected.is_empty(),
        };
        if is_recorded {
            continue;
        }
        let proposal = Proposal::new(FleetAction::Presence { server, connected }, Principal::system("presence"));
        match timeout(PROPOSE_WITHIN, node.propose(proposal)).await.unwrap_or(Err(ProposeError::TimedOut)) {
            Ok(outcome) => view.shows(outcome.last_event.index).await,
            Err(ProposeError::Stopped(why)) => return Err(ProposeError::Stopped(why)),
            Err(error) => tracing::warn!(%error, "failed to record which agents are connected, trying again"),
        }
    }
}

/// Turns the sessions' wheel.
pub(super) async fn turn_wheel(sessions: Arc<SessionTable>) -> Result<(), ProposeError> {
    let mut ticks = interval(TICK);
    // Sessions must not seem silent because this process was stopped for a while.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        sessions.turn();
    }
}

/// Ends all sessions when this server knew no leader for [`LEASE`]; `is_in_touch` says whether new ones may open.
pub(super) async fn hold_lease(
    node: Node,
    sessions: Arc<SessionTable>,
    is_in_touch: Arc<watch::Sender<bool>>,
) -> Result<(), ProposeError> {
    let mut leadership = node.leadership();
    loop {
        if leadership.wait_for(|now| now.leader.is_none()).await.is_err() {
            return Ok(());
        }
        let Ok(found) = timeout(LEASE, leadership.wait_for(|now| now.leader.is_some())).await.map(|found| found.is_ok()) else {
            tracing::warn!(sessions = sessions.len(), "no leader known, sending agents to other servers");
            is_in_touch.send_replace(false);
            sessions.for_each(|_, outbox| outbox.end(End::Busy { retry_after: AWAY }));
            if leadership.wait_for(|now| now.leader.is_some()).await.is_err() {
                return Ok(());
            }
            is_in_touch.send_replace(true);
            continue;
        };
        if !found {
            return Ok(());
        }
    }
}
