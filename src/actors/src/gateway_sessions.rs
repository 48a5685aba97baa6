//! The gateways connected to this server: publishes routes to them, and says which routes all of them obey. Knows nothing of agents.

mod obeyed;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use futures::{SinkExt as _, StreamExt as _};
use tokio::{
    sync::watch,
    time::{Instant, interval, sleep_until, timeout},
};

use swell_model::{
    interfaces::Link,
    rollout::assignment::Generation,
    routing::messages::{GatewayHello, GatewayToServer, ServerToGateway},
    tables::TablesError,
    units::Millis,
    wire::{FRAME_BYTES_MAX, HEARTBEAT_EVERY, PROTOCOL_VERSION, Refusal, SILENCE_MAX},
};
use swell_projections::routes::{GatewayRoutes, Routes, Step};
use swell_raft::{FeedItem, Node, View};

use obeyed::ObeyedRoutes;

/// The most gateways of one server: each is compared with every change of routes that it serves.
const GATEWAYS_MAX: usize = 1024;

/// The least time between two updates of one gateway: what changes meanwhile is sent as one update.
const UPDATE_EVERY: Duration = Duration::from_millis(10);

/// The least time between two whole tables that one gateway asks for.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(1);

/// How often lost gateways are looked at.
const EXPIRY_EVERY: Duration = Duration::from_secs(1);

/// How long a gateway waits that this server cannot take now.
const RETRY_AFTER: Millis = Millis::from_secs(5);

/// Serves gateways' sessions, from routes that a task of its own keeps up to date. Cheap to clone.
#[derive(Clone)]
pub(super) struct GatewaySessions(Arc<Shared>);

struct Shared {
    /// `None` before the first view of state.
    routes: RwLock<Option<Routes>>,
    /// Generation of `routes`; the default before the first view.
    published: watch::Sender<Generation>,
    gateways: Mutex<ObeyedRoutes>,
    obeyed: watch::Sender<Option<u64>>,
}

impl GatewaySessions {
    pub fn new() -> Self {
        let (published, _) = watch::channel(Generation::default());
        let (obeyed, _) = watch::channel(None);
        Self(Arc::new(Shared { routes: RwLock::default(), published, gateways: Mutex::default(), obeyed }))
    }

    /// The log index up to which every gateway obeys routes, those lost within the last minute among them; `None` without any. An
    /// index without a change of routes counts as obeyed with the one before it.
    pub fn obeyed(&self) -> watch::Receiver<Option<u64>> {
        self.0.obeyed.subscribe()
    }

    /// Keeps routes up to date until the node stops.
    ///
    /// # Errors
    /// When state cannot be read.
    pub async fn publish(self, node: Node) -> Result<(), TablesError> {
        let mut feed = node.changes();
        let mut expiry = interval(EXPIRY_EVERY);
        loop {
            let item = tokio::select! {
                item = feed.next() => item,
                _ = expiry.tick() => {
                    self.0.publish_obeyed();
                    continue;
                }
            };
            match item {
                None => return Ok(()),
                Some(FeedItem::StartOver(view)) => {
                    let Some(routes) = start_over(view).await? else { return Ok(()) };
                    self.0.replace(|_| Some(routes));
                }
                Some(FeedItem::Applied(batch)) => self.0.replace(|routes| {
                    routes.map(|mut routes| {
                        routes.update(&batch);
                        routes
                    })
                }),
            }
        }
    }

    /// Serves a gateway until its session ends.
    pub async fn serve(&self, hello: GatewayHello, mut link: Link<GatewayToServer, ServerToGateway>) {
        if hello.version != PROTOCOL_VERSION {
            tracing::warn!(gateway = %hello.name, version = hello.version, "gateway refused, it speaks another version");
            send(&mut link, ServerToGateway::Refused(Refusal::Version { server: PROTOCOL_VERSION })).await.ok();
            return;
        }
        let Some(session) = Session::open(Arc::clone(&self.0), &hello) else {
            tracing::warn!(gateway = %hello.name, gateways = GATEWAYS_MAX, "gateway turned away, there are too many");
            send(&mut link, ServerToGateway::Busy { retry_after: RETRY_AFTER }).await.ok();
            return;
        };
        tracing::info!(gateway = %hello.name, zone = %hello.zone, generation = %hello.generation, "gateway connected");
        let reason = session.converse(GatewayRoutes::new(&hello), &mut link).await;
        tracing::info!(gateway = %hello.name, reason, "gateway disconnected");
    }
}

/// Derives routes from state, on a thread that may block. `None` when the runtime stops.
async fn start_over(view: View) -> Result<Option<Routes>, TablesError> {
    match tokio::task::spawn_blocking(move || Routes::from_tables(&view, view.applied())).await {
        Ok(routes) => routes.map(Some),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Ok(None),
    }
}

impl Shared {
    /// Changes the routes and publishes them. After a panic in `change` there are none until the task starts over.
    fn replace(&self, change: impl FnOnce(Option<Routes>) -> Option<Routes>) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        *routes = change(routes.take());
        let generation = routes.as_ref().map(Routes::generation);
        drop(routes);
        if let Some(generation) = generation {
            self.published.send_replace(generation);
        }
    }

    fn gateways(&self) -> MutexGuard<'_, ObeyedRoutes> {
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish_obeyed(&self) {
        let cluster = self.published.borrow().cluster;
        let lowest = self.gateways().lowest(Instant::now());
        // Of a former generation of the cluster nothing counts.
        let now = lowest.map(|lowest| if lowest.cluster == cluster { lowest.index } else { 0 });
        self.obeyed.send_if_modified(|obeyed| std::mem::replace(obeyed, now) != now);
    }
}

/// A gateway's session, which counts until it is dropped, and as lost for a while after.
struct Session {
    shared: Arc<Shared>,
    number: u64,
}

impl Session {
    fn open(shared: Arc<Shared>, hello: &GatewayHello) -> Option<Self> {
        let number = {
            let mut gateways = shared.gateways();
            (gateways.connected() < GATEWAYS_MAX).then(|| gateways.connect(&hello.gateway, hello.generation))?
        };
        shared.publish_obeyed();
        Some(Self { shared, number })
    }

    /// Sends what changes and takes what the gateway says, until either side ends the session. Returns why it ended.
    async fn converse(&self, mut gateway: GatewayRoutes, link: &mut Link<GatewayToServer, ServerToGateway>) -> &'static str {
        let mut published = self.shared.published.subscribe();
        published.mark_changed();
        let mut heartbeat = interval(HEARTBEAT_EVERY.as_duration());
        let (mut next_update, mut sent_at) = (Instant::now(), Instant::now());
        loop {
            let changed = async {
                sleep_until(next_update).await;
                published.changed().await
            };
            tokio::select! {
                changed = changed, if !gateway.is_unacknowledged() => {
                    if changed.is_err() {
                        return "the server stops";
                    }
                    let step;
                    (gateway, step) = match self.compare(gateway).await {
                        Some(compared) => compared,
                        None => return "its routes could not be compared",
                    };
                    next_update = Instant::now() + UPDATE_EVERY;
                    match step {
                        Step::Wait => {}
                        Step::Stale => {
                            send(link, ServerToGateway::Busy { retry_after: RETRY_AFTER }).await.ok();
                            return "it follows a later generation of the cluster";
                        }
                        Step::Send(update) => {
                            for frame in update.into_frames(FRAME_BYTES_MAX) {
                                if send(link, ServerToGateway::Routes(frame)).await.is_err() {
                                    return "it does not accept messages";
                                }
                            }
                            sent_at = Instant::now();
                        }
                    }
                    self.obey(gateway.obeyed());
                }
                message = link.incoming.next() => match message {
                    Some(GatewayToServer::Routed { generation }) => {
                        gateway.acknowledge(generation);
                        self.obey(gateway.obeyed());
                    }
                    Some(GatewayToServer::SnapshotWanted) => {
                        gateway.start_over();
                        next_update = Instant::now() + SNAPSHOT_EVERY;
                        published.mark_changed();
                    }
                    Some(GatewayToServer::Heartbeat) => {}
                    Some(GatewayToServer::Hello(_)) => return "it sent a second hello",
                    None => return "the connection ended",
                },
                _ = heartbeat.tick() => {
                    if gateway.is_unacknowledged() && sent_at.elapsed() > SILENCE_MAX.as_duration() {
                        return "it did not acknowledge routes in time";
                    }
                    if send(link, ServerToGateway::Heartbeat).await.is_err() {
                        return "it does not accept messages";
                    }
                }
            }
        }
    }

    /// Compares what the gateway holds with the routes, on a thread that may block. `None` when that failed.
    async fn compare(&self, mut gateway: GatewayRoutes) -> Option<(GatewayRoutes, Step)> {
        let shared = Arc::clone(&self.shared);
        let compare = move || {
            let routes = shared.routes.read().unwrap_or_else(PoisonError::into_inner);
            let step = routes.as_ref().map_or(Step::Wait, |routes| gateway.next(routes));
            (gateway, step)
        };
        tokio::task::spawn_blocking(compare).await.ok()
    }

    fn obey(&self, generation: Generation) {
        if self.shared.gateways().obey(self.number, generation) {
            self.shared.publish_obeyed();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.gateways().disconnect(self.number, Instant::now());
        self.shared.publish_obeyed();
    }
}

/// The gateway is gone or too slow.
struct NotSent;

async fn send(link: &mut Link<GatewayToServer, ServerToGateway>, message: ServerToGateway) -> Result<(), NotSent> {
    match timeout(SILENCE_MAX.as_duration(), link.outgoing.send(message)).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(NotSent),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
