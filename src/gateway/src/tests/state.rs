//! Where tables come from and where they stay: servers, disk, and what the admin address tells of them.

use std::net::SocketAddr;

use futures::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{Message, handshake::server},
};

use super::support::*;
use crate::{SessionConfig, saved};
use swell_model::routing::table::{GatewayToServer, RouteTable, ServerToGateway};

#[tokio::test]
async fn the_admin_address_tells_how_it_is() {
    let upstream = Upstream::named("x").await;
    let gateway = Running::with(config()).await;
    assert_eq!(gateway.admin("/livez").await.0, 200);
    assert_eq!(gateway.admin("/readyz").await.0, 503);
    let routes = to(7, &[upstream.address]);
    gateway.table.apply(routes.clone()).unwrap();
    assert_eq!(gateway.admin("/readyz").await.0, 200);
    let (_, json) = gateway.admin("/routes").await;
    assert_eq!(serde_json::from_str::<RouteTable>(&json).unwrap(), routes);
    for _ in 0..3 {
        assert_eq!(gateway.get("/").await.0, 200);
    }
    let (_, metrics) = gateway.admin("/metrics").await;
    for line in [
        "swell_gateway_table_generation 7",
        "swell_gateway_requests_total{service=\"shop/prod/web\",release=\"shop@1\",class=\"2xx\"} 3",
        "swell_gateway_request_seconds_count{service=\"shop/prod/web\",release=\"shop@1\"} 3",
    ] {
        assert!(metrics.lines().any(|has| has == line), "{line} is not in {metrics}");
    }
    assert_eq!(gateway.admin("/nothing").await.0, 404);
}

#[tokio::test]
async fn it_serves_after_a_restart_without_any_server() {
    let upstream = Upstream::named("still here").await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    config.table_file = Some(folder.path().join("routes"));
    let before = Running::with(config.clone()).await;
    before.table.apply(to(1, &[])).unwrap();
    before.table.apply(to(5, &[upstream.address])).unwrap();
    before.stop().await;

    let after = Running::with(config.clone()).await;
    assert_eq!(after.get("/").await, (200, "still here".into()));
    assert!(after.table.apply(to(4, &[])).is_err(), "the saved table is held like any other");
    after.stop().await;

    let path = config.table_file.clone().unwrap();
    std::fs::write(&path, b"SWELLRT1 and then nothing that was ever saved, long enough").unwrap();
    let damaged = Running::with(config).await;
    assert_eq!(damaged.admin("/readyz").await.0, 503);
    damaged.table.apply(to(9, &[upstream.address])).unwrap();
    assert_eq!(damaged.get("/").await.0, 200);
    damaged.stop().await;
    assert_eq!(saved::load(&path).unwrap().unwrap().generation, 9);
}

struct FakeServer(TcpListener);

type Session = WebSocketStream<TcpStream>;

impl FakeServer {
    async fn start() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Self(listener), address)
    }

    /// Takes the next session and its first message.
    async fn session(&self) -> (Session, GatewayToServer) {
        let (stream, _) = within("a session", self.0.accept()).await.unwrap();
        #[allow(clippy::result_large_err)]
        let check = |request: &server::Request, response: server::Response| {
            assert_eq!(request.uri().path(), "/v1/gateways/session");
            assert_eq!(request.headers()["authorization"], "Bearer secret");
            Ok(response)
        };
        let mut session = accept_hdr_async(stream, check).await.unwrap();
        let Message::Binary(hello) = within("a hello", session.next()).await.unwrap().unwrap() else { panic!("not binary") };
        (session, rmp_serde::from_slice(&hello).unwrap())
    }
}

async fn say(session: &mut Session, routes: RouteTable) {
    let frame = rmp_serde::to_vec_named(&ServerToGateway::Routes(routes)).unwrap();
    session.send(Message::binary(frame)).await.unwrap();
}

#[tokio::test]
async fn tables_come_from_whichever_server_answers() {
    let upstream = Upstream::named("x").await;
    let (server, address) = FakeServer::start().await;
    // Nobody listens at the first: a port that was just given back.
    let (gone, gone_address) = FakeServer::start().await;
    drop(gone);
    let mut config = config();
    config.name = "edge-1".into();
    let servers = vec![gone_address.to_string(), address.to_string()];
    config.session = Some(SessionConfig { servers, token: "secret".into() });
    assert!(!format!("{config:?}").contains("secret"));
    let gateway = Running::with(config).await;

    let (mut session, hello) = server.session().await;
    let GatewayToServer::Hello(hello) = hello else { panic!("{hello:?}") };
    assert_eq!((hello.name.as_str(), hello.zone.as_str(), hello.generation), ("edge-1", "a", 0));
    assert_eq!(hello.addresses, gateway.addresses);
    say(&mut session, to(3, &[upstream.address])).await;
    until("the table being applied", || gateway.table.generation() == 3).await;
    assert_eq!(gateway.get("/").await.0, 200);

    drop(session);
    let (mut session, hello) = server.session().await;
    assert!(matches!(hello, GatewayToServer::Hello(hello) if hello.generation == 3));
    assert_eq!(gateway.get("/").await.0, 200, "between sessions it serves on");
    say(&mut session, to(2, &[])).await;
    say(&mut session, to(4, &[upstream.address])).await;
    until("the later table being applied", || gateway.table.generation() == 4).await;
    session.send(Message::binary(&b"\xc1 nonsense"[..])).await.unwrap();
    let (mut session, hello) = server.session().await;
    assert!(matches!(hello, GatewayToServer::Hello(hello) if hello.generation == 4));
    say(&mut session, to(5, &[])).await;
    until("the last table being applied", || gateway.table.generation() == 5).await;
    gateway.stop().await;
}
