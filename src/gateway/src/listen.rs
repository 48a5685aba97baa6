//! A gateway as a whole: its listeners, its tasks, and how it stops. Knows nothing of what a request goes through.

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
    saved,
    session::{self, Identity},
    table::TableHandle,
};
use swell_model::routing::table::{RouteTable, ServiceKey};
use swell_system::sockets::{Speaks, prepare, speaks};

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// An address could not be listened on.
    #[error("listening on {address}: {source}; is another program using it? choose another with `--listen`")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The configuration contradicts itself.
    #[error("the gateway's configuration cannot be used: {0}")]
    Configured(&'static str),
}

/// A gateway that listens; it answers once it runs.
#[derive(Debug)]
pub struct Gateway {
    config: GatewayConfig,
    listeners: Vec<(TcpListener, SocketAddr, Option<Arc<ServiceKey>>)>,
    admin: Option<(TcpListener, SocketAddr)>,
    table: TableHandle,
    /// Tables since the saved one was loaded: what is to be saved.
    unsaved: watch::Receiver<Arc<RouteTable>>,
    meters: Arc<Meters>,
}

impl Gateway {
    /// Takes its addresses and loads the table that was saved last. A damaged saved table is warned of and left out.
    ///
    /// # Errors
    /// When an address cannot be listened on or the configuration contradicts itself.
    pub async fn bind(config: GatewayConfig) -> Result<Self, GatewayError> {
        if config.listeners.is_empty() {
            return Err(GatewayError::Configured("it has no listener"));
        }
        if config.session.as_ref().is_some_and(|session| session.servers.is_empty()) {
            return Err(GatewayError::Configured("its session has no server"));
        }
        if config.limits.header_bytes_max.0 < 8 << 10 {
            return Err(GatewayError::Configured("`header_bytes_max` is below 8 KiB"));
        }
        let meters = Arc::new(Meters::default());
        let table = TableHandle::new(config.zone.clone(), Arc::clone(&meters));
        if let Some(path) = config.table_file.clone() {
            match tokio::task::spawn_blocking(move || saved::load(&path)).await {
                Ok(Ok(Some(routes))) => {
                    let generation = routes.generation;
                    match table.apply(routes) {
                        Ok(()) => tracing::info!(generation, "serving by the routes saved last"),
                        Err(outdated) => tracing::debug!(error = %outdated, "the saved routes are empty"),
                    }
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "starting without routes"),
                Err(error) => tracing::warn!(%error, "starting without routes"),
            }
        }
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
        Ok(Self { config, listeners, admin, table, unsaved, meters })
    }

    /// The table in force, for applying others and for looking.
    pub fn table_handle(&self) -> TableHandle {
        self.table.clone()
    }

    /// What it counts.
    pub fn meters(&self) -> Arc<Meters> {
        Arc::clone(&self.meters)
    }

    /// Where it takes requests, in the order of the configuration.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|(_, address, _)| *address).collect()
    }

    /// Where it answers about itself.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(_, address)| *address)
    }

    /// Serves until `shutdown`. Then it takes no new connections, finishes requests in flight within
    /// [`Limits::drain_timeout`], and closes what is left. The admin address answers until the end.
    pub async fn run(self, shutdown: CancellationToken) {
        let addresses = self.addresses();
        let Self { config, listeners, admin, table, unsaved, meters } = self;
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
            beside.spawn(save_tables(path, unsaved, until_end.clone()));
        }
        if let Some(session) = config.session {
            let identity = Identity { name: config.name, zone: config.zone, addresses };
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

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), GatewayError> {
    let error = |source| GatewayError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(error)?;
    let bound = listener.local_addr().map_err(error)?;
    Ok((listener, bound))
}

/// What the connections of one listener share.
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
            // It has said nothing yet, so nothing of it is in flight.
            None => return Ok(()),
        };
        let service = service_fn(move |request: Request<Incoming>| {
            let (proxy, inbound) = (Arc::clone(&self.proxy), Arc::clone(&inbound));
            async move { Ok::<_, Infallible>(proxy.answer(request, &inbound).await) }
        });
        graceful.watch(builder.serve_connection_with_upgrades(TokioIo::new(stream), service)).await
    }
}

/// Takes connections until `stop`, then lets those that are open finish within [`Limits::drain_timeout`].
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
            tracing::warn!("a connection could not be accepted; trying again in 50 ms");
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let inbound = Inbound::new(peer, front.service.clone(), Arc::clone(&front.meters), permit);
        let (front, watcher, stop) = (Arc::clone(&front), graceful.watcher(), stop.clone());
        connections.spawn(async move {
            if let Err(error) = front.serve(stream, Arc::new(inbound), watcher, &stop).await {
                tracing::debug!(%peer, %error, "connection broke off");
            }
        });
    }
    drop(listener);
    if timeout(front.limits.drain_timeout.as_duration(), graceful.shutdown()).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "closing connections with requests in flight: they took longer than `drain_timeout`"
        );
    }
}

async fn serve_admin(listener: TcpListener, admin: Admin, stop: CancellationToken) {
    let admin = Arc::new(admin);
    // Few ask, and nobody can wear the gateway out by asking.
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
                tracing::debug!(%peer, %error, "admin connection broke off");
            }
            drop(permit);
        });
    }
}

/// Saves each table that comes in force, the latest only when they come quickly, and the last one at the end.
async fn save_tables(path: PathBuf, mut tables: watch::Receiver<Arc<RouteTable>>, stop: CancellationToken) {
    loop {
        let more = tokio::select! {
            changed = tables.changed() => changed.is_ok(),
            () = stop.cancelled() => false,
        };
        if !more && !tables.has_changed().unwrap_or(false) {
            return;
        }
        let latest = Arc::clone(&tables.borrow_and_update());
        let path = path.clone();
        match tokio::task::spawn_blocking(move || saved::save(&path, &latest)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the routes serve, but would be lost with a restart"),
            Err(error) => tracing::warn!(%error, "the routes serve, but would be lost with a restart"),
        }
    }
}
