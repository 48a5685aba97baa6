//! The gateways connected to this server: publishes routes to them, and says which routes all of them obey. Knows nothing of agents.

use std::sync::Arc;

use futures::{SinkExt as _, StreamExt as _};
use tokio::{
    sync::watch,
    time::{interval, timeout},
};

use swell_model::{
    change::{AppliedBatch, Change},
    interfaces::Link,
    routing::{
        derive::route_table,
        table::{GatewayHello, GatewayToServer, RouteTable, ServerToGateway},
    },
    tables::{Table, TablesError},
    wire::{HEARTBEAT_EVERY, SILENCE_MAX},
};
use swell_raft::{FeedItem, Node, View};

/// Hands gateways' sessions over to whoever publishes routes. Cheap to clone.
#[derive(Clone)]
pub(super) struct GatewaySessions {
    routes: Arc<watch::Sender<Arc<RouteTable>>>,
    obeyed: Arc<watch::Sender<Option<u64>>>,
}

impl GatewaySessions {
    pub fn new() -> Self {
        let (routes, _) = watch::channel(Arc::default());
        let (obeyed, _) = watch::channel(None);
        Self { routes: Arc::new(routes), obeyed: Arc::new(obeyed) }
    }

    /// The log index up to which every gateway that counts obeys routes; `None` while no gateway counts. An index without a change of
    /// routes counts as obeyed with the one before it.
    pub fn obeyed(&self) -> watch::Receiver<Option<u64>> {
        self.obeyed.subscribe()
    }

    /// Keeps routes up to date until the node stops.
    pub async fn publish(self, node: Node) -> Result<(), TablesError> {
        let mut feed = node.changes();
        while let Some(item) = feed.next().await {
            match item {
                FeedItem::StartOver(view) => self.route(&view)?,
                FeedItem::Applied(batch) if changes_routes(&batch) => self.route(&node.view())?,
                FeedItem::Applied(_) => {}
            }
        }
        Ok(())
    }

    fn route(&self, view: &View) -> Result<(), TablesError> {
        let now = route_table(view, view.applied())?;
        self.routes.send_if_modified(|last| {
            let is_same = last.services == now.services && last.generation > 0;
            if !is_same {
                *last = Arc::new(now);
            }
            !is_same
        });
        Ok(())
    }

    /// Serves a gateway until its session ends.
    pub async fn serve(&self, hello: GatewayHello, mut link: Link<GatewayToServer, ServerToGateway>) {
        let mut routes = self.routes.subscribe();
        // Generation 0 is before any state.
        if routes.wait_for(|routes| routes.generation > 0).await.is_err() {
            return;
        }
        routes.mark_changed();
        tracing::info!(gateway = %hello.name, zone = %hello.zone, "gateway connected");
        let mut heartbeat = interval(HEARTBEAT_EVERY.as_duration());
        loop {
            let frame = tokio::select! {
                changed = routes.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    Some(ServerToGateway::Routes(routes.borrow_and_update().as_ref().clone()))
                }
                message = link.incoming.next() => match message {
                    Some(_) => None,
                    None => break,
                },
                _ = heartbeat.tick() => Some(ServerToGateway::Heartbeat),
            };
            if let Some(frame) = frame {
                match timeout(SILENCE_MAX.as_duration(), link.outgoing.send(frame)).await {
                    Ok(Ok(())) => {}
                    _ => break,
                }
            }
        }
        tracing::info!(gateway = %hello.name, "gateway disconnected");
    }
}

fn changes_routes(batch: &AppliedBatch) -> bool {
    batch.changes.iter().any(|change| {
        matches!(
            change,
            Change::Observation(_)
                | Change::Target(_)
                | Change::Environment(_)
                | Change::Deployment(_)
                | Change::Rollout(_)
                | Change::Removed(Table::Observations | Table::Targets | Table::Deployments, _)
        )
    })
}
