//! Durable commands a second: one server beside one etcd, with the same clients, sizes and file system, and fsync in both.
//!
//! Ours is a command over the HTTP API that rewrites a small record whatever it was (an environment's freeze, with a reason of 256
//! bytes): it passes authentication, the rules, the log and the state machine, and leaves an event. etcd's is a `Put` of 256 bytes. Each
//! client has a connection and a record of its own.

use std::{future::Future, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use hyper::Method;
use serde_json::json;
use swell_loadgen::api::{Api, Connection};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    Setup,
    etcd::{Etcd, EtcdClient, put},
    process::{folder, installed, require_disk, version},
    report::Report,
    sample::{Paired, ms, percentile},
    server::Server,
};

/// Bytes of each value.
const VALUE_BYTES: usize = 256;

/// Clients at once.
const CLIENTS: [usize; 4] = [1, 16, 64, 256];

/// How often both sides are measured.
const ROUNDS: usize = 5;

pub async fn run(setup: &Setup, report: Report) -> Result<()> {
    let program = installed("etcd", "etcd-server")?;
    report.versions(&[("etcd", version(&program, &["--version"]).await?)]);
    let peer_folder = folder()?;
    require_disk(peer_folder.path())?;
    let server = Server::start(setup).await?;
    let etcd = Etcd::start(&program, peer_folder.path()).await?;
    let clients_max = CLIENTS.into_iter().max().unwrap_or_default();
    let api = server.api()?;
    for client in 0..clients_max {
        api.post("/v1/environments", &json!({ "name": environment(client) })).await?;
    }
    for count in CLIENTS {
        let mut samples = Vec::new();
        for round in 0..setup.rounds(ROUNDS) {
            let ours = measure(ours(&api, count).await?, setup.quick).await.context("measuring swell")?;
            let peer = measure(theirs(&etcd, count).await?, setup.quick).await.context("measuring etcd")?;
            eprintln!("{count} clients, round {}: swell {:.0}/s, etcd {:.0}/s", round + 1, ours.per_second, peer.per_second);
            samples.push((ours, peer));
        }
        let paired = |value: fn(&Sample) -> f64| {
            samples.iter().map(|(ours, peer)| Paired { ours: value(ours), peer: value(peer) }).collect::<Vec<_>>()
        };
        let note = format!("etcd, {VALUE_BYTES} bytes, fsync in both");
        let clients = if count == 1 { "1 client".to_owned() } else { format!("{count} clients") };
        report.compared(&clients, &paired(|sample| sample.per_second), "commands/s", &note)?;
        report.compared(&format!("{clients}, median"), &paired(|sample| sample.p50_ms), "ms", &note)?;
        report.compared(&format!("{clients}, 99th percentile"), &paired(|sample| sample.p99_ms), "ms", &note)?;
    }
    etcd.stop().await?;
    server.stop().await
}

fn environment(client: usize) -> String {
    format!("bench-{client}")
}

/// Something that writes durably, one write after the other.
trait Client: Send + 'static {
    fn write(&mut self) -> impl Future<Output = Result<()>> + Send;
}

struct Ours {
    connection: Connection,
    path: String,
    body: Bytes,
}

impl Client for Ours {
    async fn write(&mut self) -> Result<()> {
        let (status, answer) = self.connection.send(Method::POST, &self.path, self.body.clone()).await?;
        ensure!(status.is_success(), "{} was refused with {status}: {}", self.path, String::from_utf8_lossy(&answer));
        Ok(())
    }
}

async fn ours(api: &Api, count: usize) -> Result<Vec<Ours>> {
    let body = Bytes::from(json!({ "why": "x".repeat(VALUE_BYTES) }).to_string());
    let mut clients = Vec::new();
    for client in 0..count {
        let path = format!("/v1/environments/{}/freeze", environment(client));
        clients.push(Ours { connection: api.connect().await?, path, body: body.clone() });
    }
    Ok(clients)
}

struct Theirs {
    client: EtcdClient,
    message: Bytes,
}

impl Client for Theirs {
    async fn write(&mut self) -> Result<()> {
        self.client.send(self.message.clone()).await
    }
}

async fn theirs(etcd: &Etcd, count: usize) -> Result<Vec<Theirs>> {
    let mut clients = Vec::new();
    for client in 0..count {
        let message = put(environment(client).as_bytes(), &[b'x'; VALUE_BYTES]);
        clients.push(Theirs { client: EtcdClient::connect(etcd.address).await?, message });
    }
    Ok(clients)
}

/// What was measured of one side in one round.
#[derive(Debug, Clone, Copy)]
struct Sample {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Lets all clients write at once, first to warm up, then for the measurement.
async fn measure(clients: Vec<impl Client>, quick: bool) -> Result<Sample> {
    let (warm_up, window) = if quick { (200, 2000) } else { (500, 3000) };
    let begin = Instant::now() + Duration::from_millis(warm_up);
    let window = Duration::from_millis(window);
    let end = begin + window;
    let mut tasks = JoinSet::new();
    for mut client in clients {
        tasks.spawn(async move {
            let mut took = Vec::new();
            loop {
                let started = Instant::now();
                if started >= end {
                    return Ok::<_, anyhow::Error>(took);
                }
                client.write().await?;
                let ended = Instant::now();
                if ended > begin && ended <= end {
                    took.push(ended - started);
                }
            }
        });
    }
    let mut took = Vec::new();
    while let Some(client) = tasks.join_next().await {
        took.extend(client.context("a client panicked")??);
    }
    let per_second = took.len() as f64 / window.as_secs_f64();
    let p50 = percentile(&mut took, 50.0).context("no write ended within the measurement")?;
    let p99 = percentile(&mut took, 99.0).context("no write ended within the measurement")?;
    Ok(Sample { per_second, p50_ms: ms(p50), p99_ms: ms(p99) })
}
