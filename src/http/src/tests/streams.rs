//! Events that are followed without gap or repeat, and sessions of agents and gateways.

use std::collections::BTreeMap;

use futures::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use super::*;
use swell_model::{
    apply::testing::info,
    fleet::observation::ReportsHash,
    rollout::assignment::Generation,
    routing::{
        messages::{GatewayId, ServedServices},
        table::{Instance, InstanceState, RouteTable, RoutesHash, ServiceRoute},
        update::RouteUpdate,
    },
    wire::{AgentHello, AgentId, FRAME_BYTES_MAX, PROTOCOL_VERSION},
};

/// Server-sent events as `(id, kind, data)`, as far as they were read.
struct Sse {
    response: reqwest::Response,
    text: String,
}

impl Sse {
    async fn open(server: &Server, query: &str, last_id: Option<&str>) -> Self {
        let request =
            server.request(Method::GET, &format!("/v1/events{query}"), Role::Viewer).header("accept", "text/event-stream");
        let request = last_id.into_iter().fold(request, |request, id| request.header("last-event-id", id));
        Self { response: request.send().await.unwrap(), text: String::new() }
    }

    async fn next(&mut self) -> (String, String, String) {
        let read = async {
            loop {
                if let Some((frame, rest)) = self.text.split_once("\n\n") {
                    let field = |name: &str| {
                        let prefix = format!("{name}: ");
                        frame.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().to_owned()
                    };
                    let found = (field("id"), field("event"), field("data"));
                    self.text = rest.to_owned();
                    return found;
                }
                let chunk = self.response.chunk().await.unwrap().expect("the stream goes on");
                self.text += std::str::from_utf8(&chunk).unwrap();
            }
        };
        tokio::time::timeout(SOON, read).await.expect("an event")
    }

    /// The next `count` events' cursors.
    async fn events(&mut self, count: usize) -> Vec<String> {
        let mut seen = Vec::new();
        while seen.len() < count {
            let (id, kind, _) = self.next().await;
            if kind == "event" {
                seen.push(id);
            }
        }
        seen
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn resumed_stream_has_no_gap_or_repeat() {
    let server = Arc::new(Server::start().await);
    let writing = {
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            for number in 0..60 {
                server.pipeline(&format!("p{number}")).await;
            }
        })
    };
    let (mut seen, mut last) = (Vec::new(), None);
    // Six followers, one after the other, while the log grows.
    for _ in 0..6 {
        let mut follower = Sse::open(&server, "?after=0.0", last.as_deref()).await;
        seen.extend(follower.events(10).await);
        last = seen.last().cloned();
    }
    writing.await.unwrap();
    let (_, page) = server.get("/v1/events?limit=500").await;
    let all: Vec<_> = page["items"].as_array().unwrap().iter().map(|event| event["seq"].as_str().unwrap().to_owned()).collect();
    assert!(all.len() >= 60);
    assert_eq!(seen, all[..60]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_from_oldest_event_has_each_event_once_in_order() {
    let options = Options { heartbeat: Duration::from_millis(200), ..Options::default() };
    let server = Server::with(options).await;
    // More than one read returns.
    let names: Vec<String> = (0..300).map(|number| format!("p{number}")).collect();
    futures::future::join_all(names.iter().map(|name| server.pipeline(name))).await;
    let newest = server.node.last_event().borrow().to_string();
    let mut follower = Sse::open(&server, "?after=0.0", None).await;
    let mut seen = Vec::new();
    loop {
        let (id, kind, _) = follower.next().await;
        match kind.as_str() {
            "event" => seen.push(id),
            _ if id == newest => break,
            _ => {}
        }
    }
    let mut all = Vec::new();
    let mut path = "/v1/events?limit=150".to_owned();
    loop {
        let (_, page) = server.get(&path).await;
        all.extend(page["items"].as_array().unwrap().iter().map(|event| event["seq"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/events?limit=150&cursor={next}");
    }
    assert!(all.len() >= 300);
    assert_eq!(seen, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn filtered_stream_has_only_wanted_subjects_and_cursor_advances() {
    let options = Options { heartbeat: Duration::from_millis(100), ..Options::default() };
    let server = Server::with(options).await;
    let mut follower = Sse::open(&server, "?subject=repository/,pipeline/shop", None).await;
    assert_eq!(follower.next().await.1, "cursor", "it says at once where it begins");
    for name in ["a", "b"] {
        server.pipeline(name).await;
    }
    let newest = server.node.last_event().borrow().to_string();
    let moved = async {
        loop {
            let (id, kind, _) = follower.next().await;
            assert_eq!(kind, "cursor", "neither a nor b was asked for");
            if id == newest {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, moved).await.expect("the cursor passes what was not wanted");
    server.pipeline("shop").await;
    server.done("/v1/repositories", json!({ "name": "r" })).await;
    let mut subjects = Vec::new();
    while subjects.len() < 2 {
        let (_, kind, data) = follower.next().await;
        if kind == "event" {
            subjects.push(serde_json::from_str::<Value>(&data).unwrap()["subject"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(subjects, ["pipeline/shop", "repository/r"]);
    for bad in ["?subject=shop", "?after=yesterday"] {
        let (status, body) = server.get(&format!("/v1/events{bad}")).await;
        assert_problem(status, &body, "invalid");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn second_page_after_event_continues_first_and_both_positions_are_refused() {
    let server = Server::start().await;
    for name in ["a", "b", "c", "d"] {
        server.pipeline(name).await;
    }
    let (_, all) = server.get("/v1/events?subject=pipeline/").await;
    let seqs = |page: &Value| -> Vec<String> {
        page["items"].as_array().unwrap().iter().map(|event| event["seq"].as_str().unwrap().to_owned()).collect()
    };
    let all = seqs(&all);
    let (_, first) = server.get(&format!("/v1/events?subject=pipeline/&limit=1&after={}", all[0])).await;
    assert_eq!(seqs(&first), all[1..2]);
    let next = first["next"].as_str().unwrap();
    let (_, second) = server.get(&format!("/v1/events?subject=pipeline/&limit=1&cursor={next}")).await;
    assert_eq!(seqs(&second), all[2..3]);
    let (status, body) = server.get(&format!("/v1/events?after={}&cursor={next}", all[0])).await;
    assert_problem(status, &body, "invalid");
    assert!(body["detail"].as_str().unwrap().contains("`after` and `cursor`"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_of_one_subject_has_its_events_only() {
    let server = Server::start().await;
    server.pipeline("shop").await;
    let mut follower = Sse::open(&server, "?subject=pipeline/shop&after=0.0", None).await;
    assert_eq!(follower.events(1).await.len(), 1);
    let mut follower = Sse::open(&server, "?subject=build/b1", None).await;
    server.done("/v1/builds", json!({ "pipeline": "shop", "commit": "1".repeat(40) })).await;
    server.done("/v1/builds", json!({ "pipeline": "shop", "commit": "2".repeat(40) })).await;
    server.done("/v1/builds/b1/cancel", json!({})).await;
    let mut kinds = Vec::new();
    while kinds.len() < 2 {
        let (_, kind, data) = follower.next().await;
        if kind == "event" {
            let event: Value = serde_json::from_str(&data).unwrap();
            assert_eq!(event["subject"], "build/b1");
            kinds.push(event["kind"].clone());
        }
    }
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn socket(server: &Server, path: &str, role: Role) -> Socket {
    let mut request = format!("{}{path}", server.base.replace("http", "ws")).into_client_request().unwrap();
    let token = format!("Bearer {}", server.token(role)).parse().unwrap();
    request.headers_mut().insert("authorization", token);
    tokio_tungstenite::connect_async(request).await.unwrap().0
}

async fn next(socket: &mut Socket) -> Message {
    tokio::time::timeout(SOON, socket.next()).await.expect("a frame").unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_stream_has_same_events_as_sse() {
    let server = Server::start().await;
    server.pipeline("shop").await;
    let mut socket = socket(&server, "/v1/events?after=0.0&subject=pipeline/", Role::Viewer).await;
    let frame = async |socket: &mut Socket| serde_json::from_str::<Value>(next(socket).await.to_text().unwrap()).unwrap();
    assert_eq!(frame(&mut socket).await["cursor"], "0.0");
    assert_eq!(frame(&mut socket).await["event"]["subject"], "pipeline/shop");
    server.pipeline("blog").await;
    assert_eq!(frame(&mut socket).await["event"]["subject"], "pipeline/blog");
    socket.close(None).await.unwrap();
}

fn binary(message: &impl serde::Serialize) -> Message {
    Message::binary(rmp_serde::to_vec_named(message).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_session_passes_frames_both_ways_until_either_end_closes() {
    let server = Server::start().await;
    let mut agent = socket(&server, "/v1/agents/session", Role::Agent).await;
    let hello = AgentHello {
        version: PROTOCOL_VERSION,
        info: info(1),
        agent: AgentId("1".into()),
        incarnation: 1,
        following: Generation::default(),
        desired_hash: None,
        reports_hash: ReportsHash::default(),
    };
    agent.send(binary(&AgentToServer::Hello(hello))).await.unwrap();
    let heard: ServerToAgent = rmp_serde::from_slice(&next(&mut agent).await.into_data()).unwrap();
    assert_eq!(heard, ServerToAgent::Heartbeat);
    assert!(server.sessions.heard.lock().unwrap()[0].contains("web-1"));
    agent.send(binary(&AgentToServer::Report { sequence: 1, reports: Vec::new() })).await.unwrap();
    assert!(next(&mut agent).await.is_close(), "the sink ended the session");

    let mut garbage = socket(&server, "/v1/agents/session", Role::Agent).await;
    garbage.send(Message::binary(vec![0xc1])).await.unwrap();
    assert!(next(&mut garbage).await.is_close());
    let mut large = socket(&server, "/v1/agents/session", Role::Agent).await;
    large.send(Message::binary(vec![0; FRAME_BYTES_MAX + 1])).await.ok();
    let ended = tokio::time::timeout(SOON, large.next()).await.unwrap();
    assert!(ended.is_none_or(|frame| frame.is_err() || frame.is_ok_and(|frame| frame.is_close())), "too large a frame");
}

fn gateway_hello() -> GatewayHello {
    GatewayHello {
        version: PROTOCOL_VERSION,
        gateway: GatewayId("7".into()),
        name: "edge-1".into(),
        zone: "a".into(),
        addresses: Vec::new(),
        serves: ServedServices::All,
        generation: Generation::default(),
        hash: RoutesHash::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_session_requires_hello_first() {
    let server = Server::start().await;
    let mut gateway = socket(&server, "/v1/gateways/session", Role::Gateway).await;
    gateway.send(binary(&GatewayToServer::Hello(gateway_hello()))).await.unwrap();
    let heard: ServerToGateway = rmp_serde::from_slice(&next(&mut gateway).await.into_data()).unwrap();
    assert_eq!(heard, ServerToGateway::Heartbeat);
    assert_eq!(*server.sessions.heard.lock().unwrap(), ["edge-1"]);

    let mut mute = socket(&server, "/v1/gateways/session", Role::Gateway).await;
    mute.send(binary(&GatewayToServer::Heartbeat)).await.unwrap();
    assert!(next(&mut mute).await.is_close());
    let (status, body) = answer(server.request(Method::GET, "/v1/gateways/session", Role::Gateway)).await;
    assert_problem(status, &body, "not_a_websocket");
}

#[tokio::test(flavor = "multi_thread")]
async fn route_table_larger_than_agent_frame_reaches_gateway() {
    let server = Server::start().await;
    let instance = |number: u32| Instance {
        target: format!("web-{number}").parse().unwrap(),
        zone: "eu-1a".into(),
        address: ([10, (number >> 16) as u8, (number >> 8) as u8, number as u8], 20_000).into(),
        state: InstanceState::Serving,
    };
    let instances = (0..100_000).map(instance).collect();
    let releases = BTreeMap::from([("shop@1".parse().unwrap(), instances)]);
    let service = Arc::new(ServiceRoute { releases, ..ServiceRoute::default() });
    let table = RouteTable::new(Generation { cluster: 1, index: 1 }, [("shop/production/web".parse().unwrap(), service)]);
    let routes = RouteUpdate::snapshot(&table);
    *server.sessions.routes.lock().unwrap() = Some(routes.clone());
    let mut gateway = socket(&server, "/v1/gateways/session", Role::Gateway).await;
    gateway.send(binary(&GatewayToServer::Hello(gateway_hello()))).await.unwrap();
    assert!(next(&mut gateway).await.is_binary());
    let frame = next(&mut gateway).await.into_data();
    assert!(frame.len() > FRAME_BYTES_MAX, "{} bytes", frame.len());
    assert_eq!(rmp_serde::from_slice::<ServerToGateway>(&frame).unwrap(), ServerToGateway::Routes(routes));
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_server_ends_streams() {
    let mut server = Server::start().await;
    let mut follower = Sse::open(&server, "", None).await;
    assert_eq!(follower.next().await.1, "cursor");
    drop(server.stop.take());
    tokio::time::timeout(SOON, &mut server.serving).await.expect("it stops although a stream is open").unwrap();
    let rest = async { while let Ok(Some(_)) = follower.response.chunk().await {} };
    tokio::time::timeout(SOON, rest).await.expect("the stream is cut");
    assert!(server.client.get(format!("{}/livez", server.base)).send().await.is_err(), "nobody answers any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connection_is_closed() {
    let server = Server::with(Options { head_timeout: Duration::from_millis(100), ..Options::default() }).await;
    for said in [b"".as_slice(), b"PRI * HTTP/2.0\r\n", b"GET /livez HTT"] {
        let mut client = tokio::net::TcpStream::connect(server.base.trim_start_matches("http://")).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut client, said).await.unwrap();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(SOON, tokio::io::AsyncReadExt::read_to_end(&mut client, &mut answer)).await;
        assert!(closed.is_ok(), "it was kept although it said no more than {said:?}");
    }
}
