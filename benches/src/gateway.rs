//! Requests a second through the gateway, beside HAProxy and nginx: the same upstream, the same clients, keep-alive on both sides.
//!
//! Our gateway gets its routes as it always does, from a server: one simulated agent reports an instance at the upstream's port.

use std::{
    convert::Infallible,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Response, StatusCode, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use swell_loadgen::{
    api::Api,
    fleet::{Fleet, FleetOptions},
};
use swell_model::principal::Role;
use tokio::{
    net::TcpListener,
    process::Command,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

use crate::{
    Setup,
    process::{Process, folder, free_address, installed, version},
    report::Report,
    sample::Paired,
    server::Server,
};

/// How often each is measured.
const ROUNDS: usize = 5;

/// Connections of the load, and bytes of an answer's body.
const CONNECTIONS: usize = 64;
const BODY_BYTES: usize = 128;

/// How long a proxy may take until it serves.
const SERVES_WITHIN: Duration = Duration::from_secs(60);

pub async fn run(setup: &Setup, report: Report) -> Result<()> {
    let (haproxy, nginx, wrk) = (installed("haproxy", "haproxy")?, installed("nginx", "nginx-light")?, installed("wrk", "wrk")?);
    report.versions(&[
        ("haproxy", version(&haproxy, &["-v"]).await?),
        ("nginx", version(&nginx, &["-v"]).await?),
        ("wrk", version(&wrk, &["-v"]).await?),
    ]);
    let folder = folder()?;
    let upstream = Upstream::start().await?;
    let ours = Ours::start(setup, folder.path(), upstream.address.port()).await?;
    let haproxy = start_haproxy(&haproxy, folder.path(), upstream.address).await?;
    let nginx = start_nginx(&nginx, folder.path(), upstream.address).await?;
    for address in [ours.address, haproxy.address, nginx.address] {
        serves(address).await?;
    }
    let mut rounds = Vec::new();
    for round in 0..setup.rounds(ROUNDS) {
        let of = async |address| load(&wrk, address, setup.quick).await;
        let (ours, haproxy, nginx) = (of(ours.address).await?, of(haproxy.address).await?, of(nginx.address).await?);
        let [a, b, c] = [ours, haproxy, nginx].map(|load| load.per_second);
        eprintln!("round {}: swell {a:.0}/s, haproxy {b:.0}/s, nginx {c:.0}/s", round + 1);
        rounds.push(Proxies { ours, haproxy, nginx });
    }
    for (peer, of) in [("HAProxy", Proxies::haproxy as fn(&Proxies) -> Load), ("nginx", Proxies::nginx)] {
        let note = format!("{peer}; {CONNECTIONS} connections, {BODY_BYTES} bytes");
        let pairs = |value: fn(Load) -> f64| -> Vec<Paired> {
            rounds.iter().map(|round| Paired { ours: value(round.ours), peer: value(of(round)) }).collect()
        };
        report.compared(&format!("requests, beside {peer}"), &pairs(|load| load.per_second), "requests/s", &note)?;
        report.compared(&format!("99th percentile, beside {peer}"), &pairs(|load| load.p99_ms), "ms", &note)?;
    }
    haproxy.process.stop().await?;
    nginx.process.stop().await?;
    ours.stop().await
}

/// One round.
struct Proxies {
    ours: Load,
    haproxy: Load,
    nginx: Load,
}

impl Proxies {
    fn haproxy(&self) -> Load {
        self.haproxy
    }

    fn nginx(&self) -> Load {
        self.nginx
    }
}

/// A server that answers every request at once.
struct Upstream {
    address: SocketAddr,
    accepting: AbortHandle,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Upstream {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("failed to listen as the upstream")?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        stream.set_nodelay(true).ok();
                        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
                    }
                    // A connection that broke is of no interest: whoever opened it counts the error.
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { address, accepting: accepting.abort_handle() })
    }
}

async fn answer(_: hyper::Request<hyper::body::Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(&[b'x'; BODY_BYTES]))))
}

/// A server, an agent and a gateway.
struct Ours {
    address: SocketAddr,
    gateway: Process,
    fleet: Fleet,
    server: Server,
}

impl Ours {
    async fn start(setup: &Setup, folder: &Path, upstream_port: u16) -> Result<Self> {
        let server = Server::start(setup).await?;
        let mut options = FleetOptions::new(server.listen, &server.token(Role::Agent)?, 1);
        options.first_address = Ipv4Addr::LOCALHOST;
        let fleet = Fleet::start(options)?;
        fleet.connected(SERVES_WITHIN).await?;
        server.api()?.post("/v1/environments", &json!({ "name": "production" })).await?;
        server.create_pipeline("shop").await?;
        let file = format!(
            "[service.web]\ncommand = [\"web\"]\nports = {{ http = {upstream_port} }}\nhealth = {{ http = \"/\" }}\n\
             [deploy.production]\nstrategy = \"rolling\"\nmax_unavailable = \"100%\"\n"
        );
        let release = server.push("shop", &file, "content").await?;
        let rollout = server.deploy("shop", "production", &release).await?;
        let state = server.ended(&rollout, SERVES_WITHIN).await?;
        ensure!(state == "deployed", "the rollout ended as {state}");

        let (address, admin) = (free_address()?, free_address()?);
        let mut command = Command::new(&setup.swell);
        command.env_clear().env("SWELL_TOKEN", server.token(Role::Gateway)?);
        command.args(["gateway", "--name", "bench", "--config", "/dev/null", "--service", "shop/production/web"]);
        command.args(["--listen", &address.to_string(), "--admin", &admin.to_string(), "--server", &server.listen.to_string()]);
        command.arg("--data").arg(folder.join("gateway"));
        let mut gateway = Process::start("swell gateway", command, &folder.join("gateway.log"))?;
        gateway.listens(address).await?;
        Ok(Self { address, gateway, fleet, server })
    }

    async fn stop(self) -> Result<()> {
        self.gateway.stop().await?;
        self.fleet.stop().await;
        self.server.stop().await
    }
}

struct Proxy {
    address: SocketAddr,
    process: Process,
}

impl Proxy {
    async fn start(name: &str, command: Command, folder: &Path, address: SocketAddr) -> Result<Self> {
        let mut process = Process::start(name, command, &folder.join(format!("{name}.log")))?;
        process.listens(address).await?;
        Ok(Self { address, process })
    }
}

async fn start_haproxy(program: &Path, folder: &Path, upstream: SocketAddr) -> Result<Proxy> {
    let address = free_address()?;
    let config = folder.join("haproxy.cfg");
    let text = format!(
        "global\n  maxconn 4096\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n  http-reuse always\n\
         frontend in\n  bind {address}\n  default_backend out\n\
         backend out\n  server upstream {upstream}\n"
    );
    fs::write(&config, text)?;
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(&config);
    Proxy::start("haproxy", command, folder, address).await
}

async fn start_nginx(program: &Path, folder: &Path, upstream: SocketAddr) -> Result<Proxy> {
    let address = free_address()?;
    let (config, home) = (folder.join("nginx.conf"), folder.display());
    let user = if nix::unistd::geteuid().is_root() { "user root;\n" } else { "" };
    let temporary: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {home}/{kind};\n")).concat();
    let text = format!(
        "{user}daemon off;\npid {home}/nginx.pid;\nerror_log stderr error;\nworker_processes auto;\nevents {{ worker_connections 1024; }}\n\
         http {{\naccess_log off;\nkeepalive_requests 1000000000;\n{temporary}\
         upstream out {{ server {upstream}; keepalive {CONNECTIONS}; keepalive_requests 1000000000; }}\n\
         server {{ listen {address}; location / {{ proxy_pass http://out; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n}}\n"
    );
    fs::write(&config, text)?;
    let mut command = Command::new(program);
    command.arg("-c").arg(&config).args(["-e", "stderr"]);
    Proxy::start("nginx", command, folder, address).await
}

/// Waits until a proxy answers from the upstream.
async fn serves(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + SERVES_WITHIN;
    let api = Api { server: address, token: "none".to_owned() };
    loop {
        let answered = async { api.connect().await?.send(Method::GET, "/", Bytes::new()).await };
        let answered = answered.await;
        if matches!(&answered, Ok((StatusCode::OK, body)) if body.len() == BODY_BYTES) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the proxy at {address} does not serve: {answered:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// What wrk measured.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Load {
    per_second: f64,
    p99_ms: f64,
}

async fn load(wrk: &Path, address: SocketAddr, quick: bool) -> Result<Load> {
    let seconds = if quick { 1 } else { 8 };
    let mut command = Command::new(wrk);
    command.args(["--threads", "2", "--connections", &CONNECTIONS.to_string(), "--latency"]);
    command.args(["--duration", &format!("{seconds}s"), &format!("http://{address}/")]).kill_on_drop(true);
    let output = timeout(Duration::from_secs(seconds + 30), command.output()).await.context("wrk does not end")??;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "requests failed: {text}");
    read(&text).with_context(|| format!("wrk prints what is not understood: {text}"))
}

fn read(text: &str) -> Option<Load> {
    let per_second = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:")?.trim().parse().ok())?;
    let p99 = text.lines().find_map(|line| Some(line.trim().strip_prefix("99%")?.trim()))?;
    let (number, unit) = p99.split_at(p99.find(|c: char| c.is_ascii_alphabetic())?);
    let scale = match unit {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        _ => return None,
    };
    Some(Load { per_second, p99_ms: number.parse::<f64>().ok()? * scale })
}

#[cfg(test)]
mod tests {
    use super::{Load, read};

    #[test]
    fn output_of_wrk_is_read() {
        let text = "Running 1s test\n  Latency Distribution\n     50%  512.00us\n     99%    1.25ms\n  100 requests\nRequests/sec:  12345.67\n";
        assert_eq!(read(text), Some(Load { per_second: 12_345.67, p99_ms: 1.25 }));
        assert_eq!(read("nothing"), None);
    }
}
