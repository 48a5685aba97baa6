//! A gateway as a whole: its listeners, its tasks, and how it stops. Knows nothing of how requests are forwarded.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    admin::Admin,
    body::BoxError,
    config::{GatewayConfig, Limits},
    measure::Meters,
    proxy::{Inbound, Proxy},
    session::{self, Identity},
    table::TableHandle,
    table_file::{self, SavedTable},
};
use swell_model::routing::{
    messages::GatewayId,
    table::{RouteTable, ServiceKey},
};
use swell_system::sockets::{Speaks, prepare, speaks};

/// How often a changing table is saved. An older one is corrected by the first server that answers.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// An address could not be bound.
    #[error("failed to listen on {address}: {source}; stop the program that uses it, or choose another with `--listen`")]
    Listen { address: SocketAddr, source: io::Error },
    /// The configuration cannot be used.
    #[error("the gateway's configuration cannot be used: {0}")]
    Configured(String),
}

/// A gateway that listens; it answers once it runs.
#[derive(Debug)]
pub struct Gateway {
    id: GatewayId,
    config: GatewayConfig,
    listeners: Vec<(TcpListener, SocketAddr, Option<Arc<ServiceKey>>)>,
    admin: Option<(TcpListener, SocketAddr)>,
    table: TableHandle,
    /// Follows the tables since the saved one was loaded.
    unsaved: watch::Receiver<Arc<RouteTable>>,
    meters: Arc<Meters>,
}

impl Gateway {
    /// Binds the addresses and loads the saved table. A damaged one is left out with a warning.
    ///
    /// # Errors
    /// When an address cannot be bound or the configuration cannot be used.
    pub async fn bind(config: GatewayConfig) -> Result<Self, GatewayError> {
        config.check().map_err(GatewayError::Configured)?;
        let meters = Arc::new(Meters::default());
        let table = TableHandle::new(config.zone.clone(), Arc::clone(&meters));
        let saved = match config.table_file.clone() {
            Some(path) => load(path).await,
            None => None,
        };
        if let Some(saved) = &saved {
            match table.apply(&saved.table) {
                Ok(()) => tracing::info!(generation = %saved.table.generation, "routing by the saved table"),
                Err(error) => tracing::warn!(%error, "saved table left out"),
            }
        }
        let id = saved.map_or_else(new_id, |saved| saved.gateway);
        let unsaved = table.watch();
        let mut listeners = Vec::new();
        for wanted in &config.listeners {
            let (listener, address) = listen(wanted.address).await?;
            listeners.push((listener, address, wanted.service.clone().map(Arc::new)));
        }
        let admin = match config.admin {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        Ok(Self { id, config, listeners, admin, table, unsaved, meters })
    }

    /// The table in force, to read it and to apply others.
    pub fn table_handle(&self) -> TableHandle {
        self.table.clone()
    }

    /// The counts of requests.
    pub fn meters(&self) -> Arc<Meters> {
        Arc::clone(&self.meters)
    }

    /// Addresses that accept requests, in the order of the configuration.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|(_, address, _)| *address).collect()
    }

    /// Address of the admin endpoints.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(_, address)| *address)
    }

    /// Serves until `shutdown`. Then it accepts no new connections, finishes requests in flight within
    /// [`Limits::drain_timeout`], and closes what is left. The admin endpoints answer until the end.
    pub async fn run(self, shutdown: CancellationToken) {
        let addresses = self.addresses();
        let Self { id, config, listeners, admin, table, unsaved, meters } = self;
        let serves = config.serves();
        let stopping = Arc::new(AtomicBool::new(false));
        let proxy = Arc::new(Proxy::new(table.clone(), config.limits.clone(), config.trust_forwarded, Arc::clone(&meters)));
        let permits = Arc::new(Semaphore::new(config.limits.connections_max));

        let mut accepting = JoinSet::new();
        for (listener, _, service) in listeners {
            let front = Front::new(Arc::clone(&proxy), Arc::clone(&meters), service, config.limits.clone());
            accepting.spawn(accept(listener, front, Arc::clone(&permits), shutdown.clone()));
        }
        let until_end = CancellationToken::new();
        let mut beside = JoinSet::new();
        if let Some((listener, _)) = admin {
            let admin = Admin { table: table.clone(), meters, stopping: Arc::clone(&stopping) };
            beside.spawn(serve_admin(listener, admin, until_end.clone()));
        }
        if let Some(path) = config.table_file {
            beside.spawn(save_tables(path, id.clone(), unsaved, until_end.clone()));
        }
        if let Some(session) = config.session {
            let identity = Identity { gateway: id, name: config.name, zone: config.zone, addresses, serves };
            beside.spawn(session::keep(session, identity, table, shutdown.clone()));
        }

        shutdown.cancelled().await;
        stopping.store(true, Relaxed);
        let drain_deadline = Instant::now() + config.limits.drain_timeout.as_duration();
        accepting.join_all().await;
        proxy.close_tunnels(drain_deadline).await;
        until_end.cancel();
        beside.join_all().await;
    }
}

async fn load(path: PathBuf) -> Option<SavedTable> {
    match tokio::task::spawn_blocking(move || table_file::load(&path)).await {
        Ok(Ok(saved)) => saved,
        Ok(Err(error)) => {
            tracing::warn!(%error, "starting without routes");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "starting without routes");
            None
        }
    }
}

fn new_id() -> GatewayId {
    GatewayId(format!("{:032x}", fastrand::u128(..)))
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), GatewayError> {
    let error = |source| GatewayError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(error)?;
    let bound = listener.local_addr().map_err(error)?;
    Ok((listener, bound))
}

/// State shared by the connections of one listener.
struct Front {
    proxy: Arc<Proxy>,
    meters: Arc<Meters>,
    service: Option<Arc<ServiceKey>>,
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
    limits: Limits,
}

impl Front {
    fn new(proxy: Arc<Proxy>, meters: Arc<Meters>, service: Option<Arc<ServiceKey>>, limits: Limits) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_read_timeout.as_duration())
            .max_headers(limits.headers_max)
            .max_buf_size(limits.header_bytes_max.0 as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(limits.header_read_timeout.as_duration())
            .max_concurrent_streams(limits.http2_streams_max)
            .max_header_list_size(u32::try_from(limits.header_bytes_max.0).unwrap_or(u32::MAX));
        Self { proxy, meters, service, http1: builder.clone().http1_only(), http2: builder.http2_only(), limits }
    }

    async fn serve(
        &self,
        stream: TcpStream,
        inbound: Arc<Inbound>,
        graceful: Watcher,
        stop: &CancellationToken,
    ) -> Result<(), BoxError> {
        prepare(&stream, self.limits.idle())?;
        let limit = self.limits.header_read_timeout.as_duration();
        let builder = match stop.run_until_cancelled(speaks(&stream, limit)).await.transpose()? {
            Some(Speaks::Http1) => &self.http1,
            Some(Speaks::Http2) => &self.http2,
            // It has sent nothing yet, so nothing of it is in flight.
            None => return Ok(()),
        };
        let service = service_fn(move |request: Request<Incoming>| {
            let (proxy, inbound) = (Arc::clone(&self.proxy), Arc::clone(&inbound));
            async move { Ok::<_, Infallible>(proxy.answer(request, &inbound).await) }
        });
        graceful.watch(builder.serve_connection_with_upgrades(TokioIo::new(stream), service)).await
    }
}

/// Accepts connections until `stop`, then lets open ones finish within [`Limits::drain_timeout`].
async fn accept(listener: TcpListener, front: Front, permits: Arc<Semaphore>, stop: CancellationToken) {
    let front = Arc::new(front);
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        while connections.try_join_next().is_some() {}
        let (Ok(permit), Ok((stream, peer))) = (permit, accepted) else {
            // Out of descriptors or memory: others must end first.
            tracing::warn!(retry_in_ms = 50, "failed to accept a connection");
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let inbound = Inbound::new(peer, front.service.clone(), Arc::clone(&front.meters), permit);
        let (front, watcher, stop) = (Arc::clone(&front), graceful.watcher(), stop.clone());
        connections.spawn(async move {
            if let Err(error) = front.serve(stream, Arc::new(inbound), watcher, &stop).await {
                tracing::debug!(%peer, %error, "connection broke");
            }
        });
    }
    drop(listener);
    if timeout(front.limits.drain_timeout.as_duration(), graceful.shutdown()).await.is_err() {
        tracing::warn!(connections = connections.len(), "drain timed out, closing connections with requests in flight");
    }
}

async fn serve_admin(listener: TcpListener, admin: Admin, stop: CancellationToken) {
    let admin = Arc::new(admin);
    // Bounds what probes and people can cost the gateway.
    let permits = Arc::new(Semaphore::new(64));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => return,
            next = next => next,
        };
        while connections.try_join_next().is_some() {}
        let Ok((stream, peer)) = accepted else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (admin, builder) = (Arc::clone(&admin), builder.clone());
        connections.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let answer = admin.answer(request.method(), request.uri().path());
                async move { Ok::<_, Infallible>(answer) }
            });
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%peer, %error, "admin connection broke");
            }
            drop(permit);
        });
    }
}

/// Saves the table in force when it changed, at most once in [`SAVE_EVERY`], and the last one at the end.
async fn save_tables(path: PathBuf, gateway: GatewayId, mut tables: watch::Receiver<Arc<RouteTable>>, stop: CancellationToken) {
    loop {
        let more = tokio::select! {
            changed = tables.changed() => changed.is_ok(),
            () = stop.cancelled() => false,
        };
        if !more && !tables.has_changed().unwrap_or(false) {
            return;
        }
        let saved = SavedTable { gateway: gateway.clone(), table: RouteTable::clone(&tables.borrow_and_update()) };
        let path = path.clone();
        match tokio::task::spawn_blocking(move || table_file::save(&path, &saved)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "failed to save routes, a restart would lose them"),
            Err(error) => tracing::warn!(%error, "failed to save routes, a restart would lose them"),
        }
        tokio::select! {
            () = tokio::time::sleep(SAVE_EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
}
