//! The agents connected to this server: desired state down, reports up. Each session is a small task; what they share is kept by tasks of
//! their own. Knows nothing of gateways but which routes they obey.
//!
//! - `agent`: one session
//! - `table`: all sessions, by target number
//! - `outbox`: what waits to be sent to one agent
//! - `shared`: what all sessions have at hand; `view`: what they read of state
//! - `reports`, `trim`: what agents report, on its way into state
//! - `recorder`: presence, heartbeats, and the lease without which sessions end

mod agent;
mod outbox;
mod recorder;
mod reports;
mod shared;
mod table;
mod trim;
mod view;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{gateway_sessions::GatewaySessions, supervise::keep_running};
use reports::{Reports, ReportsInbox};
use shared::Shared;
use swell_artifacts::store::ContentStore;
use swell_model::{
    interfaces::{Link, SessionSink},
    routing::messages::{GatewayHello, GatewayToServer, ServerToGateway},
    wire::{AgentToServer, ServerToAgent},
};
use swell_raft::Node;
use table::SessionTable;
use view::FleetView;

/// Takes over the sessions of agents and gateways. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    agents: Arc<Shared>,
    gateways: GatewaySessions,
}

/// The tasks behind [`Sessions`]; dropping them ends them.
pub(super) struct SessionTasks {
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Sessions {
    /// Starts what serves the sessions of server number `server`.
    pub(super) fn start(node: Node, server: u64, content: Arc<dyn ContentStore>) -> (Self, SessionTasks) {
        let (sessions, view) = (Arc::new(SessionTable::new()), Arc::new(FleetView::new()));
        let (reports, inbox) = ReportsInbox::new();
        let (routing, applied) = reports::routing_channel();
        let (is_in_touch, in_touch) = watch::channel(true);
        let is_in_touch = Arc::new(is_in_touch);
        let gateways = GatewaySessions::new();
        let agents = Arc::new(Shared {
            node: node.clone(),
            sessions: Arc::clone(&sessions),
            view: Arc::clone(&view),
            reports,
            opening: Semaphore::new(agent::OPENING_MAX),
            is_in_touch: in_touch,
        });
        let this = Self { agents, gateways: gateways.clone() };
        let obeyed = gateways.obeyed();
        let tasks = vec![
            {
                let node = node.clone();
                keep_running("routes", move || gateways.clone().publish(node.clone()))
            },
            {
                let (node, sessions, view) = (node.clone(), Arc::clone(&sessions), Arc::clone(&view));
                keep_running("fleet view", move || {
                    let (node, sessions, view) = (node.clone(), Arc::clone(&sessions), Arc::clone(&view));
                    async move { view.follow(node, sessions).await }
                })
            },
            {
                let (node, content) = (node.clone(), content);
                keep_running("reports", move || {
                    let (node, content, routing) = (node.clone(), Arc::clone(&content), routing.clone());
                    Reports { node, content, inbox: Arc::clone(&inbox), routing }.run()
                })
            },
            keep_running("routed", move || reports::tell_routed(Arc::clone(&applied), obeyed.clone())),
            {
                let (node, sessions, view) = (node.clone(), Arc::clone(&sessions), view);
                keep_running("presence", move || {
                    recorder::record_presence(node.clone(), server, Arc::clone(&sessions), Arc::clone(&view))
                })
            },
            {
                let sessions = Arc::clone(&sessions);
                keep_running("heartbeats", move || recorder::turn_wheel(Arc::clone(&sessions)))
            },
            keep_running("lease", move || recorder::hold_lease(node.clone(), Arc::clone(&sessions), Arc::clone(&is_in_touch))),
        ];
        (this, SessionTasks { _tasks: tasks })
    }
}

impl SessionSink for Sessions {
    fn agent(&self, link: Link<AgentToServer, ServerToAgent>) -> BoxFuture<'_, ()> {
        Box::pin(agent::serve(&self.agents, link))
    }

    fn gateway(&self, hello: GatewayHello, link: Link<GatewayToServer, ServerToGateway>) -> BoxFuture<'_, ()> {
        Box::pin(self.gateways.serve(hello, link))
    }
}
