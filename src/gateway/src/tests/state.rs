//! Where tables come from and where they stay: servers, disk, and the admin endpoints.

use std::{net::SocketAddr, sync::Arc};

use futures::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{Message, handshake::server},
};

use super::support::*;
use crate::{SessionConfig, table_file};
use swell_model::{
    routing::{
        messages::{GatewayHello, GatewayToServer, ServedServices, ServerToGateway},
        table::{RouteTable, RoutesHash},
        update::RouteUpdate,
    },
    units::Millis,
    wire::{PROTOCOL_VERSION, Refusal},
};

#[tokio::test]
async fn admin_endpoints_show_readiness_routes_and_metrics() {
    let upstream = Upstream::named("x").await;
    let gateway = Running::with(config()).await;
    assert_eq!(gateway.admin("/livez").await.0, 200);
    assert_eq!(gateway.admin("/readyz").await.0, 503);
    let routes = to(7, &[upstream.address]);
    gateway.table.apply(&routes).unwrap();
    assert_eq!(gateway.admin("/readyz").await.0, 200);
    let (_, json) = gateway.admin("/routes").await;
    assert_eq!(serde_json::from_str::<RouteTable>(&json).unwrap(), routes);
    for _ in 0..3 {
        assert_eq!(gateway.get("/").await.0, 200);
    }
    let (_, metrics) = gateway.admin("/metrics").await;
    for line in [
        "swell_gateway_table_index 7",
        "swell_gateway_requests_total{service=\"shop/prod/web\",release=\"shop@1\",class=\"2xx\"} 3",
        "swell_gateway_request_seconds_count{service=\"shop/prod/web\",release=\"shop@1\"} 3",
    ] {
        assert!(metrics.lines().any(|has| has == line), "{line} is not in {metrics}");
    }
    assert_eq!(gateway.admin("/nothing").await.0, 404);
}

#[tokio::test]
async fn gateway_serves_after_restart_without_any_server() {
    let upstream = Upstream::named("still here").await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    config.table_file = Some(folder.path().join("routes"));
    let before = Running::with(config.clone()).await;
    before.table.apply(&to(1, &[])).unwrap();
    before.table.apply(&to(5, &[upstream.address])).unwrap();
    before.stop().await;

    let after = Running::with(config.clone()).await;
    assert_eq!(after.get("/").await, (200, "still here".into()));
    assert!(after.table.apply(&to(4, &[])).is_err(), "the saved table is held like any other");
    after.stop().await;

    let path = config.table_file.clone().unwrap();
    std::fs::write(&path, b"SWELLRT2 and then nothing that was ever saved, long enough").unwrap();
    let damaged = Running::with(config).await;
    assert_eq!(damaged.admin("/readyz").await.0, 503);
    damaged.table.apply(&to(9, &[upstream.address])).unwrap();
    assert_eq!(damaged.get("/").await.0, 200);
    damaged.stop().await;
    assert_eq!(table_file::load(&path).unwrap().unwrap().table.generation.index, 9);
}

struct FakeServer(TcpListener);

type Socket = WebSocketStream<TcpStream>;

/// The server's side of a session.
struct Session(Socket);

impl FakeServer {
    async fn start() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Self(listener), address)
    }

    /// Accepts the next session and its hello.
    async fn session(&self) -> (Session, GatewayHello) {
        let (stream, _) = within("a session", self.0.accept()).await.unwrap();
        #[allow(clippy::result_large_err)]
        let check = |request: &server::Request, response: server::Response| {
            assert_eq!(request.uri().path(), "/v1/gateways/session");
            assert_eq!(request.headers()["authorization"], "Bearer secret");
            Ok(response)
        };
        let mut session = Session(accept_hdr_async(stream, check).await.unwrap());
        match session.receive().await {
            GatewayToServer::Hello(hello) => (session, hello),
            other => panic!("{other:?}"),
        }
    }
}

impl Session {
    async fn send(&mut self, message: ServerToGateway) {
        self.0.send(Message::binary(rmp_serde::to_vec_named(&message).unwrap())).await.unwrap();
    }

    /// The next message that is not a heartbeat.
    async fn receive(&mut self) -> GatewayToServer {
        loop {
            let Message::Binary(bytes) = within("a message", self.0.next()).await.unwrap().unwrap() else { panic!("not binary") };
            match rmp_serde::from_slice(&bytes).unwrap() {
                GatewayToServer::Heartbeat => {}
                message => return message,
            }
        }
    }

    /// Sends all of `routes` and waits until the gateway obeys them.
    async fn route(&mut self, routes: &RouteTable) {
        self.send(ServerToGateway::Routes(RouteUpdate::snapshot(routes))).await;
        assert_eq!(self.receive().await, GatewayToServer::Routed { generation: routes.generation });
    }

    async fn closed(mut self) {
        let ended = within("the end of the session", async { while let Some(Ok(_)) = self.0.next().await {} });
        ended.await;
    }
}

async fn gateway_of(addresses: &[SocketAddr]) -> Running {
    let mut config = config();
    config.name = "edge-1".into();
    let servers = addresses.iter().map(SocketAddr::to_string).collect();
    config.session = Some(SessionConfig { servers, token: "secret".into() });
    assert!(!format!("{config:?}").contains("secret"));
    Running::with(config).await
}

#[tokio::test]
async fn routes_come_from_whichever_server_answers() {
    let upstream = Upstream::named("x").await;
    let (server, address) = FakeServer::start().await;
    // Nobody listens at the first: a port that was just given back.
    let (gone, gone_address) = FakeServer::start().await;
    drop(gone);
    let gateway = gateway_of(&[gone_address, address]).await;

    let (mut session, hello) = server.session().await;
    assert_eq!((hello.version, hello.name.as_str(), hello.zone.as_str()), (PROTOCOL_VERSION, "edge-1", "a"));
    assert_eq!((hello.generation.index, hello.hash, &hello.serves), (0, RoutesHash::default(), &ServedServices::All));
    assert_eq!(hello.addresses, gateway.addresses);
    let third = to(3, &[upstream.address]);
    session.route(&third).await;
    assert_eq!(gateway.get("/").await.0, 200);

    drop(session);
    let (session, again) = server.session().await;
    assert_eq!((again.generation, again.hash, again.gateway), (third.generation, third.hash(), hello.gateway));
    assert_eq!(gateway.get("/").await.0, 200, "the gateway serves between sessions");
    drop(session);
    let (mut session, _) = server.session().await;
    session.0.send(Message::binary(&b"\xc1 nonsense"[..])).await.unwrap();
    session.closed().await;
    let (mut session, hello) = server.session().await;
    assert_eq!(hello.generation, third.generation);
    session.route(&to(5, &[])).await;
    gateway.stop().await;
}

#[tokio::test]
async fn update_that_does_not_fit_is_answered_with_a_wish_for_all_routes() {
    let (server, address) = FakeServer::start().await;
    let gateway = gateway_of(&[address]).await;
    let (mut session, _) = server.session().await;
    session.route(&to(3, &[])).await;
    let latest = to(5, &["127.0.0.1:9".parse().unwrap()]);
    let delta = |from: &RouteTable| RouteUpdate { from: Some(from.generation), ..RouteUpdate::snapshot(&latest) };
    session.send(ServerToGateway::Routes(delta(&to(4, &[])))).await;
    assert_eq!(session.receive().await, GatewayToServer::SnapshotWanted);
    session.send(ServerToGateway::Routes(delta(&to(3, &[])))).await;
    assert_eq!(session.receive().await, GatewayToServer::Routed { generation: latest.generation });
    assert_eq!(*Arc::clone(&gateway.table.load().source), latest);
    gateway.stop().await;
}

#[tokio::test]
async fn server_that_is_behind_is_left() {
    let (server, address) = FakeServer::start().await;
    let gateway = gateway_of(&[address]).await;
    let (mut session, _) = server.session().await;
    let newest = to(5, &["127.0.0.1:9".parse().unwrap()]);
    session.route(&newest).await;
    session.send(ServerToGateway::Routes(RouteUpdate::snapshot(&to(4, &[])))).await;
    session.closed().await;
    assert_eq!(gateway.table.generation(), newest.generation);
    let (_session, hello) = server.session().await;
    assert_eq!(hello.generation, newest.generation);
    gateway.stop().await;
}

#[tokio::test]
async fn busy_or_refusing_server_is_left_for_another() {
    let ((busy, busy_address), (old, old_address), (server, address)) =
        (FakeServer::start().await, FakeServer::start().await, FakeServer::start().await);
    let gateway = gateway_of(&[busy_address, address, old_address]).await;
    let (mut session, _) = busy.session().await;
    session.send(ServerToGateway::Busy { retry_after: Millis::from_secs(3600) }).await;
    session.closed().await;
    let (mut session, _) = server.session().await;
    session.route(&to(3, &[])).await;
    drop(session);
    let (mut session, _) = old.session().await;
    session.send(ServerToGateway::Refused(Refusal::Version { server: PROTOCOL_VERSION + 1 })).await;
    session.closed().await;
    assert_eq!(gateway.table.generation(), to(3, &[]).generation);
    gateway.stop().await;
}
