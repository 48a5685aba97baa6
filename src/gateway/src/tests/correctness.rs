//! What crosses the gateway and what it refuses.

use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{HeaderMap, Request, Response, Version, body::Frame, header::HeaderValue};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use super::support::*;
use crate::Listener;
use swell_model::units::ByteSize;

/// Answers with what it was sent: request line, header fields, body, trailers.
async fn mirror() -> Upstream {
    Upstream::start(|request| async move {
        let (parts, body) = request.into_parts();
        let mut seen = format!("{} {}\n", parts.method, parts.uri);
        parts.headers.iter().for_each(|(name, value)| seen.push_str(&format!("{name}: {}\n", value.to_str().unwrap())));
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        seen.push_str(&format!("\n{}", String::from_utf8_lossy(&body.to_bytes())));
        trailers.iter().for_each(|(name, value)| seen.push_str(&format!("\ntrailer {name}: {}", value.to_str().unwrap())));
        reply(seen)
    })
    .await
}

#[tokio::test]
async fn request_is_routed_by_host() {
    let (shop, blog) = (Upstream::named("shop").await, Upstream::named("blog").await);
    let mut config = config();
    config.listeners.push(Listener { address: "127.0.0.1:0".parse().unwrap(), service: Some("blog/prod/web".parse().unwrap()) });
    let gateway = Running::with(config).await;
    let no_table = gateway.get("/").await;
    assert!(no_table.0 == 503 && no_table.1.contains("no routes yet"), "{no_table:?}");

    let mut blog_route = route("blog/prod/web", vec![instance(blog.address, "a")]);
    Arc::make_mut(&mut blog_route.1).hosts = vec!["blog.example".into()];
    let empty = route("idle/prod/web", vec![]);
    let services = vec![route(SERVICE, vec![instance(shop.address, "a")]), blog_route, empty];
    gateway.table.apply(&table(1, services)).unwrap();
    let ask = async |listener: usize, host: &str| {
        let request = Request::get(format!("http://{}/", gateway.addresses[listener])).header("host", host);
        fetch(&client(), request.body(Full::default()).unwrap()).await
    };
    assert_eq!(ask(0, "web.shop.prod").await, (200, "shop".into()));
    assert_eq!(ask(0, "WEB.shop.prod.lan:7480").await, (200, "shop".into()));
    assert_eq!(ask(0, "blog.example").await, (200, "blog".into()));
    assert_eq!(ask(1, "anything.example").await, (200, "blog".into()), "the listener is for one service");
    let (status, body) = ask(0, "nobody.example").await;
    assert!(
        status == 404
            && body.contains("no service has the host nobody.example; known: web.blog.prod, web.idle.prod, web.shop.prod"),
        "{status} {body}"
    );
    let answer = gateway.raw("GET / HTTP/1.1\r\nHost: web.idle.prod\r\nConnection: close\r\n\r\n").await.to_lowercase();
    for part in ["http/1.1 503", "retry-after: 1", "application/problem+json", "no instance of idle/prod/web"] {
        assert!(answer.contains(part), "{answer}");
    }
}

#[tokio::test]
async fn instance_sees_request_and_client_address() {
    let mirror = mirror().await;
    let gateway = Running::start(to(1, &[mirror.address])).await;
    let head = "POST /a%20b?x=1&y HTTP/1.1\r\nHost: web.shop.prod:99\r\nConnection: close, x-private\r\nX-Private: 1\r\n\
                X-Forwarded-For: 9.9.9.9\r\nContent-Length: 3\r\n\r\nabc";
    let answer = gateway.raw(head).await;
    for part in [
        "POST /a%20b?x=1&y\n",
        "\nhost: web.shop.prod:99\n",
        "\nx-forwarded-for: 127.0.0.1\n",
        "\nx-forwarded-host: web.shop.prod:99\n",
        "\nx-forwarded-proto: http\n",
        "\nforwarded: for=127.0.0.1;host=\"web.shop.prod:99\";proto=http\n",
        "\ncontent-length: 3\n",
        "\n\nabc",
    ] {
        assert!(answer.contains(part), "{part:?} is not in {answer}");
    }
    assert!(!answer.contains("x-private"), "{answer}");
}

#[tokio::test]
async fn request_without_host_reaches_pinned_service_with_one() {
    let mirror = mirror().await;
    let mut config = config();
    config.listeners[0].service = Some(SERVICE.parse().unwrap());
    let gateway = Running::with(config).await;
    gateway.table.apply(&to(1, &[mirror.address])).unwrap();
    let answer = gateway.raw("GET /old HTTP/1.0\r\n\r\n").await;
    assert!(answer.contains(&format!("\nhost: {}\n", mirror.address)), "{answer}");
}

#[tokio::test]
async fn answer_without_body_keeps_its_fields() {
    let upstream = Upstream::start(|request| async move {
        let mut answer = reply(if request.method() == "HEAD" { "" } else { "12345" });
        if request.uri().path() == "/same" {
            answer = reply("");
            *answer.status_mut() = hyper::StatusCode::NOT_MODIFIED;
        } else {
            answer.headers_mut().insert("content-length", HeaderValue::from_static("5"));
        }
        answer.headers_mut().insert("etag", HeaderValue::from_static("\"1\""));
        answer
    })
    .await;
    let gateway = Running::start(to(1, &[upstream.address])).await;
    let ask = async |line: &str| gateway.raw(format!("{line} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
    let head = ask("HEAD /").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: 5\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    let same = ask("GET /same").await;
    assert!(same.starts_with("HTTP/1.1 304") && same.contains("etag: \"1\"") && same.ends_with("\r\n\r\n"), "{same}");
    assert!(!same.contains("transfer-encoding"), "{same}");
    let old = gateway.raw(format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n")).await;
    assert!(old.ends_with("\r\n\r\n12345"), "{old}");
}

#[tokio::test]
async fn trailers_are_passed_on_both_ways() {
    let mirror = mirror().await;
    let gateway = Running::start(to(1, &[mirror.address])).await;
    let chunked = "POST / HTTP/1.1\r\nHost: web.shop.prod\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n\
                   3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 42\r\n\r\n";
    let answer = gateway.raw(chunked).await;
    assert!(answer.contains("\n\nabcde\ntrailer x-sum: 42"), "{answer}");

    let upstream = Upstream::start(|_| async {
        let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("7"))]);
        let frames = [Ok(Frame::data(Bytes::from("hello"))), Ok(Frame::trailers(trailers))];
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures::stream::iter(frames))));
        response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
        response
    })
    .await;
    gateway.table.apply(&to(2, &[upstream.address])).unwrap();
    let answer = gateway.raw("GET / HTTP/1.1\r\nHost: web.shop.prod\r\nTE: trailers\r\nConnection: close, te\r\n\r\n").await;
    assert!(answer.contains("5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn ambiguous_request_is_refused() {
    let mirror = mirror().await;
    let gateway = Running::start(to(1, &[mirror.address])).await;
    for fields in [
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Content-Length: 3, 4\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: 0x3\r\n",
        "Content-Length : 3\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding:\x0bchunked\r\n",
        "X: 1\r\n folded: 2\r\n",
        "X\0: 1\r\n",
        "X: a\rb\r\n",
        "Host: other\r\n",
    ] {
        let answer = gateway.raw(format!("POST / HTTP/1.1\r\nHost: web.shop.prod\r\n{fields}\r\nabcd")).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{fields:?} got {answer:?}");
    }
    for head in ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "G\x7fT / HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let answer = gateway.raw(head.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head:?} got {answer:?}");
    }
    assert_eq!(mirror.hits(), 0, "none of them reached the instance");
}

#[tokio::test]
async fn request_with_two_lengths_smuggles_nothing() {
    // RFC 9112, 6.3: the chunked one counts, only that is passed on, and the connection ends, so that nothing which another
    // proxy took for the body is taken for a request here.
    let mirror = mirror().await;
    let gateway = Running::start(to(1, &[mirror.address])).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: web.shop.prod\r\n\r\n";
    for fields in ["Content-Length: 60\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 60\r\n"]
    {
        let before = mirror.hits();
        let answer = gateway.raw(format!("POST / HTTP/1.1\r\nHost: web.shop.prod\r\n{fields}\r\n0\r\n\r\n{smuggled}")).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
        assert!(!answer.contains("content-length: 60") && !answer.contains("smuggled"), "{answer}");
        assert_eq!(mirror.hits(), before + 1);
    }
}

#[tokio::test]
async fn head_or_body_beyond_its_bound_is_refused() {
    let mirror = mirror().await;
    let mut config = config();
    config.limits.request_body_max = ByteSize(1000);
    let gateway = Running::with(config).await;
    gateway.table.apply(&to(1, &[mirror.address])).unwrap();
    let huge = gateway.raw(format!("GET / HTTP/1.1\r\nHost: web.shop.prod\r\nX: {}\r\n\r\n", "x".repeat(70_000))).await;
    assert!(huge.starts_with("HTTP/1.1 431"), "{huge}");
    let many = gateway.raw(format!("GET / HTTP/1.1\r\nHost: web.shop.prod\r\n{}\r\n", "X: 1\r\n".repeat(101))).await;
    assert!(many.starts_with("HTTP/1.1 431"), "{many}");
    let declared =
        gateway.raw("POST / HTTP/1.1\r\nHost: web.shop.prod\r\nConnection: close\r\nContent-Length: 1001\r\n\r\n").await;
    assert!(declared.starts_with("HTTP/1.1 413"), "{declared}");
    let head = "POST / HTTP/1.1\r\nHost: web.shop.prod\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let streamed = gateway.raw(format!("{head}3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001))).await;
    assert!(streamed.starts_with("HTTP/1.1 413"), "{streamed}");
    let fits = gateway.raw(format!("{head}3e8\r\n{}\r\n0\r\n\r\n", "x".repeat(1000))).await;
    assert!(fits.starts_with("HTTP/1.1 200"), "{fits}");
}

#[tokio::test]
async fn client_that_expects_continue_gets_it() {
    let mirror = mirror().await;
    let gateway = Running::start(to(1, &[mirror.address])).await;
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: web.shop.prod\r\nExpect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut word = [0; 25];
    within("100 Continue", stream.read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").await.unwrap();
    let mut rest = String::new();
    within("the answer", stream.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200") && rest.ends_with("\n\nabc"), "{rest}");
}

#[tokio::test]
async fn websocket_is_tunneled() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let echo = tokio::spawn(async move {
        let mut socket = tokio_tungstenite::accept_async(listener.accept().await.unwrap().0).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if !message.is_close() {
                socket.send(message).await.unwrap();
            }
        }
    });
    let gateway = Running::start(to(1, &[address])).await;
    let mut request = format!("ws://{}/chat", gateway.address()).into_client_request().unwrap();
    request.headers_mut().insert("host", HeaderValue::from_static(HOST));
    let (mut socket, response) = within("the handshake", tokio_tungstenite::connect_async(request)).await.unwrap();
    assert_eq!(response.status(), 101);
    for text in ["one".to_owned(), "x".repeat(100_000)] {
        socket.send(Message::text(text.clone())).await.unwrap();
        assert_eq!(within("an echo", socket.next()).await.unwrap().unwrap(), Message::text(text));
    }
    assert!(
        gateway.admin("/metrics").await.1.contains("instance_in_flight{service=\"shop/prod/web\",release=\"shop@1\",address=")
    );
    socket.close(None).await.unwrap();
    within("the end of the echo", echo).await.unwrap();
    drop(socket);
    gateway.stop().await;
}

#[tokio::test]
async fn http2_is_accepted_and_grpc_passed_on_with_trailers() {
    let upstream = Upstream::start(|request| async move {
        let version = format!("{:?} {}", request.version(), request.headers()["host"].to_str().unwrap_or("?"));
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        let frames = [Ok(Frame::data(Bytes::from(version))), Ok(Frame::trailers(trailers))];
        Response::new(BodyExt::boxed(StreamBody::new(futures::stream::iter(frames))))
    })
    .await;
    let gateway = Running::start(table(
        1,
        vec![{
            let mut any = route(SERVICE, vec![instance(upstream.address, "a")]);
            Arc::make_mut(&mut any.1).hosts = vec!["127.0.0.1".into()];
            any
        }],
    ))
    .await;
    let client: TestClient = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    for (content_type, version) in [("application/grpc", "HTTP/2.0"), ("text/plain", "HTTP/1.1")] {
        let request = Request::post(format!("http://{}/x", gateway.address())).header("content-type", content_type);
        let response = within("an answer", client.request(request.body(Full::from("hi")).unwrap())).await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
        let body = response.into_body().collect().await.unwrap();
        let trailers = body.trailers().cloned();
        assert_eq!(String::from_utf8(body.to_bytes().to_vec()).unwrap(), format!("{version} {}", gateway.address()));
        assert_eq!(trailers.is_some(), version == "HTTP/2.0");
    }
}
