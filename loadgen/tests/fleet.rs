//! Simulated agents against a server that only speaks the protocol.

#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{SinkExt as _, StreamExt as _};
use swell_loadgen::{
    counters::Counters,
    fleet::{Fleet, FleetOptions},
    target::{FAIL_PERCENT, START_MS},
};
use swell_model::{
    digest::Digest,
    fleet::observation::Progress,
    ids::{ReleaseId, TargetName},
    pipeline_file::Service,
    rollout::assignment::{DesiredRelease, DesiredService, DesiredTarget, Generation},
    units::{ByteSize, Millis},
    wire::{AgentHello, AgentToServer, Refusal, ServerToAgent},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_tungstenite::{WebSocketStream, accept_async, tungstenite::Message as Frame};

const PATIENCE: Duration = Duration::from_secs(60);
const AGENTS: u32 = 40;

/// A server that tells every agent to run the newest release, and acknowledges what it says.
struct FakeServer {
    address: SocketAddr,
    release: watch::Sender<Option<(u64, DesiredRelease)>>,
    /// Every hello.
    hellos: mpsc::Receiver<AgentHello>,
    /// Drops all sessions when it changes.
    break_off: watch::Sender<u32>,
    reports: Arc<AtomicU64>,
    _accepting: JoinSet<()>,
}

#[derive(Clone)]
struct Conditions {
    release: watch::Receiver<Option<(u64, DesiredRelease)>>,
    hellos: mpsc::Sender<AgentHello>,
    break_off: watch::Receiver<u32>,
    reports: Arc<AtomicU64>,
}

impl FakeServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (release, release_rx) = watch::channel(None);
        let (break_off, break_off_rx) = watch::channel(0);
        let (hellos_tx, hellos) = mpsc::channel(1000);
        let reports = Arc::new(AtomicU64::new(0));
        let conditions =
            Conditions { release: release_rx, hellos: hellos_tx, break_off: break_off_rx, reports: Arc::clone(&reports) };
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut sessions = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                sessions.spawn(session(accept_async(stream).await.unwrap(), conditions.clone()));
            }
        });
        Self { address, release, hellos, break_off, reports, _accepting: accepting }
    }

    fn assign(&self, index: u64, release: &str, fail_percent: u64) -> ReleaseId {
        let env = [(START_MS, 20), (FAIL_PERCENT, fail_percent)].map(|(name, value)| (name.to_owned(), value.to_string()));
        let settings = Service { env: env.into(), ..Service::default() };
        let desired = DesiredRelease {
            release: release.parse().unwrap(),
            environment: "production".parse().unwrap(),
            artifact: Digest::of(b"a"),
            artifact_size: ByteSize(1),
            unpacked_size: ByteSize(1),
            manifest: Digest::of(b"m"),
            services: [("web".parse().unwrap(), DesiredService { settings, ports: Default::default() })].into(),
        };
        self.release.send_replace(Some((index, desired)));
        release.parse().unwrap()
    }

    async fn hello(&mut self) -> AgentHello {
        tokio::time::timeout(PATIENCE, self.hellos.recv()).await.unwrap().unwrap()
    }
}

async fn session(mut socket: WebSocketStream<TcpStream>, mut conditions: Conditions) {
    let Some(AgentToServer::Hello(hello)) = receive(&mut socket).await else { return };
    let (target, mut followed) = (hello.info.name.clone(), hello.desired_hash);
    let knows = conditions.reports.load(Ordering::Relaxed) > 0;
    conditions.hellos.send(hello).await.unwrap();
    send(&mut socket, &ServerToAgent::Welcome { reports_known: knows }).await;
    conditions.break_off.mark_unchanged();
    loop {
        let wanted = conditions.release.borrow_and_update().clone().map(|release| desired(&target, release));
        if let Some(wanted) = wanted
            && followed != Some(wanted.hash())
        {
            followed = Some(wanted.hash());
            send(&mut socket, &ServerToAgent::Desired(wanted)).await;
        }
        tokio::select! {
            changed = conditions.release.changed() => changed.unwrap(),
            _ = conditions.break_off.changed() => return,
            message = receive(&mut socket) => match message {
                Some(AgentToServer::Report { sequence, reports }) => {
                    assert!(reports.iter().all(|report| report.progress != Progress::Stopped));
                    conditions.reports.fetch_add(1, Ordering::Relaxed);
                    send(&mut socket, &ServerToAgent::Acknowledged { sequence }).await;
                    send(&mut socket, &ServerToAgent::Routed { sequence }).await;
                }
                Some(_) => {}
                None => return,
            },
        }
    }
}

fn desired(target: &TargetName, (index, release): (u64, DesiredRelease)) -> DesiredTarget {
    let generation = Generation { cluster: 1, index };
    DesiredTarget { generation, target: target.clone(), deployments: [(release.release.pipeline.clone(), release)].into() }
}

async fn receive(socket: &mut WebSocketStream<TcpStream>) -> Option<AgentToServer> {
    match socket.next().await {
        Some(Ok(Frame::Binary(frame))) => Some(rmp_serde::from_slice(&frame).unwrap()),
        _ => None,
    }
}

/// An agent may be gone already.
async fn send(socket: &mut WebSocketStream<TcpStream>, message: &ServerToAgent) {
    socket.send(Frame::binary(rmp_serde::to_vec_named(message).unwrap())).await.ok();
}

fn options(server: SocketAddr) -> FleetOptions {
    FleetOptions { ramp: Duration::ZERO, ..FleetOptions::new(server, "token", AGENTS) }
}

async fn settled(counters: &Counters, release: &ReleaseId) {
    let all = u64::from(AGENTS);
    let is_settled = |spans: swell_loadgen::counters::ReleaseSpans| spans.healthy.count + spans.failed.count == all;
    counters.wait("settling", PATIENCE, |_, timeline| is_settled(timeline.release(release))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleet_follows_releases_and_counts_who_failed() {
    let server = FakeServer::start().await;
    let fleet = Fleet::start(options(server.address)).unwrap();
    fleet.connected(PATIENCE).await.unwrap();
    let good = server.assign(1, "shop@1", 0);
    settled(fleet.counters(), &good).await;
    let bad = server.assign(2, "shop@2", 30);
    settled(fleet.counters(), &bad).await;
    let (good, bad) = (fleet.counters().timeline().release(&good), fleet.counters().timeline().release(&bad));
    assert_eq!((good.assigned.count, good.healthy.count, good.failed.count), (40, 40, 0));
    assert_eq!(bad.assigned.count, 40);
    assert!((4..=20).contains(&bad.failed.count), "about 30 %: {bad:?}");
    assert!(bad.assigned.first >= good.healthy.last && bad.healthy.last > bad.assigned.first);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_lose_the_server_come_back_with_what_they_knew() {
    let mut server = FakeServer::start().await;
    let fleet = Fleet::start(options(server.address)).unwrap();
    let release = server.assign(1, "shop@1", 0);
    settled(fleet.counters(), &release).await;
    for _ in 0..AGENTS {
        assert_eq!(server.hello().await.desired_hash, None);
    }
    let all_acknowledged = 2 * u64::from(AGENTS);
    let before = || server.reports.load(Ordering::Relaxed);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while before() < all_acknowledged {
        assert!(tokio::time::Instant::now() < deadline, "reports are missing: {}", before());
        tokio::task::yield_now().await;
    }
    server.break_off.send_modify(|number| *number += 1);
    for _ in 0..AGENTS {
        let hello = server.hello().await;
        assert_eq!(hello.following, Generation { cluster: 1, index: 1 });
        assert!(hello.desired_hash.is_some() && hello.reports_hash != Default::default());
    }
    fleet.connected(PATIENCE).await.unwrap();
    let totals = fleet.counters().totals();
    assert_eq!((totals.desired_frames, totals.failures), (u64::from(AGENTS), u64::from(AGENTS)), "{totals:?}");
    let stopped = fleet.stop().await;
    let fleet = stopped.start().unwrap();
    assert!(server.hello().await.desired_hash.is_some(), "a stopped agent remembers what it runs");
    fleet.stop().await;
}

#[tokio::test]
async fn refused_agents_stay_away_and_busy_servers_are_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let fleet = Fleet::start(FleetOptions { agents: 1, ..options(address) }).unwrap();
    let answers = [ServerToAgent::Busy { retry_after: Millis(1) }, ServerToAgent::Refused(Refusal::Version { server: 3 })];
    for answer in answers {
        let (stream, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let mut socket = accept_async(stream).await.unwrap();
        assert!(matches!(receive(&mut socket).await, Some(AgentToServer::Hello(_))));
        send(&mut socket, &answer).await;
    }
    fleet.counters().wait("being refused", PATIENCE, |totals, _| totals.refused == 1).await.unwrap();
    assert_eq!(fleet.counters().totals().busy, 1);
    fleet.stop().await;
}
