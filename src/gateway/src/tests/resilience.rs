//! Switching, failing and stopping: what clients must not notice.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Notify,
    task::{JoinHandle, JoinSet},
};

use super::support::*;
use swell_model::{routing::table::InstanceState, units::Millis};

/// Clients that ask as fast as they can until stopped; a tenth are POSTs.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: JoinSet<Vec<String>>,
}

impl Load {
    fn start(address: SocketAddr, clients_count: usize, with_posts: bool) -> Self {
        let (stop, done, mut clients) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), JoinSet::new());
        for number in 0..clients_count {
            let (stop, done, client) = (stop.clone(), done.clone(), client());
            clients.spawn(async move {
                let mut failures = Vec::new();
                for turn in number.. {
                    if stop.load(SeqCst) {
                        break;
                    }
                    let post = with_posts && turn % 10 == 0;
                    let method = if post { Method::POST } else { Method::GET };
                    let request = Request::builder().method(&method).uri(format!("http://{address}/")).header("host", HOST);
                    let body = if post { Full::from("x".repeat(100_000)) } else { Full::default() };
                    match fetch(&client, request.body(body).unwrap()).await {
                        (200, _) => {}
                        (status, body) => failures.push(format!("{method} {status} {body}")),
                    }
                    done.fetch_add(1, SeqCst);
                }
                failures
            });
        }
        Self { stop, done, clients }
    }

    async fn reaches(&self, more: usize) {
        let wanted = self.done.load(SeqCst) + more;
        until("requests being answered", || self.done.load(SeqCst) >= wanted).await;
    }

    async fn failures(self) -> Vec<String> {
        self.stop.store(true, SeqCst);
        self.clients.join_all().await.concat()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_tables_are_swapped() {
    let mut serving = vec![Upstream::named("x").await, Upstream::named("x").await];
    let addresses = |set: &[Upstream]| set.iter().map(|upstream| upstream.address).collect::<Vec<_>>();
    let gateway = Running::start(to(1, &addresses(&serving))).await;
    let load = Load::start(gateway.address(), 8, true);
    for swap in 0..200 {
        let next = vec![Upstream::named("x").await, Upstream::named("x").await];
        let mut instances: Vec<_> =
            [addresses(&serving), addresses(&next)].concat().into_iter().map(|address| instance(address, "a")).collect();
        instances.iter_mut().take(2).for_each(|old| old.state = InstanceState::Draining);
        let both = table(swap + 2, vec![route(SERVICE, instances)]);
        gateway.table.apply(&both).unwrap();
        load.reaches(8).await;
        for old in std::mem::replace(&mut serving, next) {
            gateway.drained(old.address).await;
            old.close().await;
        }
    }
    let done = load.done.load(SeqCst);
    assert_eq!(load.failures().await, Vec::<String>::new(), "of {done} requests");
    assert!(done >= 1600, "{done}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_get_fails_when_an_instance_is_killed() {
    let (stays, dies) = (Upstream::named("x").await, Upstream::named("x").await);
    let gateway = Running::start(to(1, &[stays.address, dies.address])).await;
    let load = Load::start(gateway.address(), 8, false);
    load.reaches(100).await;
    assert!(dies.hits() > 0);
    let address = dies.address;
    dies.kill().await;
    load.reaches(500).await;
    assert_eq!(load.failures().await, Vec::<String>::new());
    let (_, metrics) = gateway.admin("/metrics").await;
    let ejected =
        format!("swell_gateway_instance_ejected{{service=\"shop/prod/web\",release=\"shop@1\",address=\"{address}\"}} 1");
    assert!(metrics.contains(&ejected), "{metrics}");
}

/// Takes each request whole and hangs up without a word.
async fn hangs_up() -> (SocketAddr, Arc<AtomicUsize>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, hits) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
    let counted = hits.clone();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut some = [0; 4096];
            if matches!(stream.read(&mut some).await, Ok(1..)) {
                counted.fetch_add(1, SeqCst);
            }
        }
    });
    (address, hits, task)
}

#[tokio::test]
async fn get_is_retried_and_post_is_not_when_connection_breaks() {
    let (good, (bad, hits, task)) = (Upstream::named("good").await, hangs_up().await);
    // The bad one is in the own zone, so it is always tried first until it is left alone.
    let routes = table(1, vec![route(SERVICE, vec![instance(bad, "a"), instance(good.address, "b")])]);
    let gateway = Running::start(routes).await;
    let send = async |method: Method, body: &'static str| {
        let request = Request::builder().method(method).uri(format!("http://{}/", gateway.address())).header("host", HOST);
        fetch(&client(), request.body(Full::from(body)).unwrap()).await
    };
    let (status, body) = send(Method::POST, "order").await;
    assert!(status == 502 && body.contains("may have had an effect"), "{status} {body}");
    assert_eq!((hits.load(SeqCst), good.hits()), (1, 0));
    assert_eq!(send(Method::GET, "").await, (200, "good".into()));
    assert_eq!(send(Method::PUT, "small enough to hold").await, (200, "good".into()));
    assert_eq!((hits.load(SeqCst), good.hits()), (3, 2));
    let (_, metrics) = gateway.admin("/metrics").await;
    let unanswered = "swell_gateway_requests_total{service=\"shop/prod/web\",release=\"shop@1\",class=\"unanswered\"} 3";
    assert!(metrics.contains(unanswered) && metrics.contains("\nswell_gateway_retries_total 2\n"), "{metrics}");
    task.abort();
}

#[tokio::test]
async fn post_is_retried_when_no_connection_was_made() {
    let good = Upstream::named("good").await;
    let gone = Upstream::named("gone").await;
    let routes = table(1, vec![route(SERVICE, vec![instance(gone.address, "a"), instance(good.address, "b")])]);
    gone.close().await;
    let gateway = Running::start(routes).await;
    let request = Request::post(format!("http://{}/", gateway.address())).header("host", HOST);
    assert_eq!(fetch(&client(), request.body(Full::from("x".repeat(200_000))).unwrap()).await, (200, "good".into()));
}

#[tokio::test]
async fn request_succeeds_when_idle_connection_was_closed() {
    // Answers as if it kept the connection, then closes it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut some = [0; 4096];
            if matches!(stream.read(&mut some).await, Ok(1..)) {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        }
    });
    let gateway = Running::start(to(1, &[address])).await;
    for _ in 0..100 {
        assert_eq!(gateway.get("/").await, (200, "ok".into()));
    }
    task.abort();
}

#[tokio::test]
async fn own_zone_is_preferred() {
    let (near, far) = (Upstream::named("near").await, Upstream::named("far").await);
    let routes = table(1, vec![route(SERVICE, vec![instance(far.address, "b"), instance(near.address, "a")])]);
    let gateway = Running::start(routes).await;
    for _ in 0..20 {
        assert_eq!(gateway.get("/").await.1, "near");
    }
    near.kill().await;
    for _ in 0..20 {
        assert_eq!(gateway.get("/").await.1, "far");
    }
}

#[tokio::test]
async fn instance_that_never_answers_times_out() {
    let silent = Upstream::start(|_| std::future::pending()).await;
    let mut config = config();
    config.limits.response_timeout = Millis(50);
    let gateway = Running::with(config).await;
    gateway.table.apply(&to(1, &[silent.address])).unwrap();
    let (status, body) = gateway.get("/").await;
    assert!(status == 504 && body.contains("did not answer within 50ms"), "{status} {body}");
    assert_eq!(silent.hits(), 1, "it may still be working on it");
}

#[tokio::test]
async fn stopping_gateway_finishes_requests_and_accepts_none() {
    let go = Arc::new(Notify::new());
    let waits = go.clone();
    let slow = Upstream::start(move |request| {
        let waits = waits.clone();
        async move {
            request.into_body().collect().await.unwrap();
            waits.notified().await;
            reply("done")
        }
    })
    .await;
    let gateway = Running::start(to(1, &[slow.address])).await;
    let address = gateway.address();
    let request = Request::get(format!("http://{address}/")).header("host", HOST).body(Full::default()).unwrap();
    let asking = tokio::spawn(async move { fetch(&client(), request).await });
    until("the request being in flight", || slow.in_flight.load(SeqCst) == 1).await;
    gateway.shutdown.cancel();
    within("the listener being closed", async {
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(gateway.admin("/readyz").await.0, 503);
    go.notify_one();
    assert_eq!(asking.await.unwrap(), (200, "done".into()));
    gateway.stop().await;
}

#[tokio::test]
async fn stopping_gateway_cuts_requests_after_drain_timeout() {
    let silent = Upstream::start(|_| std::future::pending()).await;
    let mut config = config();
    config.limits.drain_timeout = Millis(50);
    let gateway = Running::with(config).await;
    gateway.table.apply(&to(1, &[silent.address])).unwrap();
    let request = Request::get(format!("http://{}/", gateway.address())).header("host", HOST).body(Full::default()).unwrap();
    let asking = tokio::spawn(async move { client().request(request).await });
    until("the request being in flight", || silent.in_flight.load(SeqCst) == 1).await;
    gateway.stop().await;
    assert!(within("the cut", asking).await.unwrap().is_err());
}
