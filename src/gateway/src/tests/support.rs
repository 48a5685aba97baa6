//! Support of the tests: instances that can be closed or killed, a gateway that stops when dropped, and clients.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{Gateway, GatewayConfig, Listener, TableHandle};
use swell_model::{
    rollout::assignment::Generation,
    routing::table::{Instance, InstanceState, RouteTable, ServiceKey, ServiceRoute},
};

pub const SERVICE: &str = "shop/prod/web";
pub const HOST: &str = "web.shop.prod";
const PATIENCE: Duration = Duration::from_secs(20);

pub fn instance(address: SocketAddr, zone: &str) -> Instance {
    Instance { target: "host-1".parse().unwrap(), zone: zone.into(), address, state: InstanceState::Serving }
}

pub fn route(service: &str, instances: Vec<Instance>) -> (ServiceKey, Arc<ServiceRoute>) {
    let releases = BTreeMap::from([("shop@1".parse().unwrap(), instances)]);
    (service.parse().unwrap(), Arc::new(ServiceRoute { releases, ..ServiceRoute::default() }))
}

pub fn table(index: u64, services: Vec<(ServiceKey, Arc<ServiceRoute>)>) -> RouteTable {
    RouteTable::new(Generation { cluster: 1, index }, services)
}

/// A table with one service at these addresses.
pub fn to(index: u64, addresses: &[SocketAddr]) -> RouteTable {
    table(index, vec![route(SERVICE, addresses.iter().map(|address| instance(*address, "a")).collect())])
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} took longer than {PATIENCE:?}"))
}

pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub type Reply = Response<BoxBody<Bytes, Infallible>>;

pub fn reply(body: impl Into<Bytes>) -> Reply {
    Response::new(Full::new(body.into()).boxed())
}

/// An instance of a service.
pub struct Upstream {
    pub address: SocketAddr,
    pub hits: Arc<AtomicUsize>,
    pub in_flight: Arc<AtomicUsize>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Upstream {
    /// Answers every request with `name`.
    pub async fn named(name: &'static str) -> Self {
        Self::start(move |request| async move {
            request.into_body().collect().await.unwrap();
            reply(name)
        })
        .await
    }

    pub async fn start<F, R>(handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hits, in_flight, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), CancellationToken::new());
        let (counted, flying, stopped, handler) = (hits.clone(), in_flight.clone(), stop.clone(), Arc::new(handler));
        let task = tokio::spawn(async move {
            let graceful = GracefulShutdown::new();
            let mut connections = JoinSet::new();
            while let Some(Ok((stream, _))) = stopped.run_until_cancelled(listener.accept()).await {
                let (watcher, counted, flying, handler) = (graceful.watcher(), counted.clone(), flying.clone(), handler.clone());
                connections.spawn(async move {
                    let service = service_fn(|request| {
                        counted.fetch_add(1, SeqCst);
                        flying.fetch_add(1, SeqCst);
                        let (flying, answer) = (flying.clone(), handler(request));
                        async move {
                            let answer = answer.await;
                            flying.fetch_sub(1, SeqCst);
                            Ok::<_, Infallible>(answer)
                        }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    watcher.watch(builder.serve_connection_with_upgrades(TokioIo::new(stream), service)).await.ok();
                });
            }
            drop(listener);
            graceful.shutdown().await;
        });
        Self { address, hits, in_flight, stop, task }
    }

    pub fn hits(&self) -> usize {
        self.hits.load(SeqCst)
    }

    /// Finishes requests in flight and stops.
    pub async fn close(self) {
        self.stop.cancel();
        within("closing an instance", self.task).await.unwrap();
    }

    /// Stops at once, with its connections.
    pub async fn kill(self) {
        self.task.abort();
        assert!(within("killing an instance", self.task).await.is_err());
    }
}

/// A gateway that runs until dropped.
pub struct Running {
    pub addresses: Vec<SocketAddr>,
    pub admin: SocketAddr,
    pub table: TableHandle,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<()>,
}

impl Running {
    pub async fn start(routes: RouteTable) -> Self {
        let running = Self::with(config()).await;
        running.table.apply(&routes).unwrap();
        running
    }

    pub async fn with(config: GatewayConfig) -> Self {
        let gateway = Gateway::bind(config).await.unwrap();
        let (addresses, admin, table) = (gateway.addresses(), gateway.admin_address().unwrap(), gateway.table_handle());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(gateway.run(shutdown.clone()));
        Self { addresses, admin, table, shutdown, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let request = Request::get(format!("http://{}{path}", self.address())).header("host", HOST);
        fetch(&client(), request.body(Full::default()).unwrap()).await
    }

    /// Waits until no request is at this address.
    pub async fn drained(&self, address: SocketAddr) {
        until("the drained instance being idle", || self.table.in_flight(address) == 0).await;
    }

    pub async fn admin(&self, path: &str) -> (u16, String) {
        fetch(&client(), Request::get(format!("http://{}{path}", self.admin)).body(Full::default()).unwrap()).await
    }

    /// Sends exactly these bytes and returns all that the gateway sends until it closes.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is as good as an end.
        match timeout(PATIENCE, stream.read_to_end(&mut answer)).await {
            Ok(_) => String::from_utf8_lossy(&answer).into_owned(),
            Err(_) => panic!(
                "{:?} was answered, without an end, {:?}",
                String::from_utf8_lossy(bytes.as_ref()),
                String::from_utf8_lossy(&answer)
            ),
        }
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        let task = self.task;
        within("stopping", task).await.unwrap();
    }
}

/// Any free port, nothing on disk, no server.
pub fn config() -> GatewayConfig {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    GatewayConfig {
        zone: "a".into(),
        listeners: vec![Listener { address: any, service: None }],
        admin: Some(any),
        ..GatewayConfig::default()
    }
}

pub type TestClient = Client<HttpConnector, Full<Bytes>>;

pub fn client() -> TestClient {
    Client::builder(TokioExecutor::new()).build_http()
}

pub async fn fetch(client: &TestClient, request: Request<Full<Bytes>>) -> (u16, String) {
    let response = within("an answer", client.request(request)).await.unwrap();
    let status = response.status().as_u16();
    let body = within("a body", response.into_body().collect()).await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}
