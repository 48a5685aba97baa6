//! What the tests share: a server that says what to run, releases that are small scripts, an agent as a child process.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use swell_agent::{Agent, AgentOptions};
use swell_artifacts::{
    archive::{PackOptions, pack},
    manifest::{Manifest, Origin},
};
use swell_model::{
    digest::Digest,
    fleet::observation::{InstanceState, Progress, Report, ReportsHash},
    pipeline_file::Service,
    rollout::assignment::{DesiredRelease, DesiredService, DesiredTarget, Generation},
    units::{ByteSize, Timestamp},
    wire::{AgentHello, AgentToServer, PROTOCOL_VERSION, ServerToAgent},
};
use tokio::sync::watch;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

pub const SWELL: &str = env!("CARGO_BIN_EXE_swell");
/// Names the file of [`AgentOptions`] for [`agent_process`].
const AGENT_CONFIG: &str = "SWELL_TEST_AGENT_CONFIG";
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the tests can run here; says so where they cannot.
pub fn can_run() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "these tests need root, and in CI nothing is skipped");
    eprintln!("SKIPPED: the agent's tests need root");
    false
}

/// A web server: `GET /` says its version; what else it does is in its environment. Perl is on every Debian.
pub const WEB: &str = r#"#!/usr/bin/perl
use strict; use IO::Socket::INET; use Socket qw(SO_REUSEPORT);
$| = 1;
my ($version, $mode) = ($ENV{VERSION} // '?', $ENV{MODE} // '');
print "this is version $version as $ENV{SWELL_INSTANCE}\n";
if ($mode eq 'crash') { print STDERR "cannot find the database\n"; exit 3 }
sleep 3600 if $mode eq 'deaf';
my $s = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => $ENV{PORT}, Listen => 64, ReuseAddr => 1) or die "listen: $!";
$SIG{TERM} = sub {
  print "asked to end\n";
  if ($ENV{ENDED}) { open my $f, '>>', $ENV{ENDED}; print $f "$version\n"; close $f }
  exit 0;
};
while (1) {
  my $c = $s->accept or next;
  my $line = <$c> // '';
  while (my $h = <$c>) { last if $h =~ /^\r?\n$/ }
  my $status = ($line =~ m{ /healthz} && ($mode eq 'sick' || -e "$ENV{SICK}")) ? '500 Sick' : '200 OK';
  my $body = $status =~ /^200/ ? $version : 'the queue is stuck';
  print $c "HTTP/1.1 $status\r\nContent-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body";
  close $c;
}
"#;

/// No test: started again with a configuration, this program is the agent, in a process that can be killed.
#[test]
fn agent_process() {
    let Some(file) = std::env::var_os(AGENT_CONFIG) else { return };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let options: AgentOptions = toml::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ended = runtime.block_on(async {
        let agent = Agent::open(options).map_err(|error| error.to_string())?;
        let stop = tokio_util::sync::CancellationToken::new();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let on_signal = stop.clone();
        tokio::spawn(async move {
            terminate.recv().await;
            on_signal.cancel();
        });
        agent.run(stop).await.map_err(|error| error.to_string())
    });
    ended.unwrap();
}

/// A release, packed.
#[derive(Clone)]
pub struct Packed {
    pub manifest: Manifest,
    pub archive: Vec<u8>,
}

/// Packs files (path, content; all executable) as an artifact of `shop`.
pub fn packed(files: &[(&str, &str)]) -> Packed {
    let folder = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut archive = Vec::new();
    let packed = pack(folder.path(), &mut archive, PackOptions { mtime_secs: 0 }).unwrap();
    let origin = Origin {
        pipeline: "shop".parse().unwrap(),
        build: None,
        commit: "0".repeat(40),
        git_ref: None,
        created_at: Timestamp(0),
        host_fingerprint: None,
        provenance: None,
    };
    Packed { manifest: Manifest::new(packed, origin), archive }
}

/// A server that says what one target should run.
#[derive(Clone)]
pub struct FakeServer {
    pub address: SocketAddr,
    state: Arc<ServerState>,
}

struct ServerState {
    desired: watch::Sender<Option<DesiredTarget>>,
    content: Mutex<BTreeMap<Digest, Packed>>,
    reports: watch::Sender<BTreeMap<String, Report>>,
    history: Mutex<Vec<Report>>,
    hellos: Mutex<Vec<AgentHello>>,
    /// What it says in place of a welcome, once each.
    answers: Mutex<Vec<ServerToAgent>>,
    /// The newest report of an agent, as (agent, incarnation, sequence).
    newest: Mutex<(String, u64, u64)>,
    /// Ends all sessions when it changes.
    sessions: watch::Sender<u64>,
    sent_desired: AtomicU64,
    /// Whether gateways obey at once; until they do nothing is routed.
    routes: watch::Sender<bool>,
    blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
    sent_bytes: AtomicU64,
    stop: tokio_util::sync::CancellationToken,
    at: watch::Sender<u64>,
}

impl FakeServer {
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), None).await
    }

    /// The same server again, after `stop`, with no report in its state.
    pub async fn again(&self) -> Self {
        Self::start_at(self.address, Some(&self.state)).await
    }

    async fn start_at(address: SocketAddr, before: Option<&ServerState>) -> Self {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(ServerState {
            desired: watch::Sender::new(before.and_then(|before| before.desired.borrow().clone())),
            content: Mutex::new(before.map(|before| before.content.lock().unwrap().clone()).unwrap_or_default()),
            reports: watch::Sender::new(BTreeMap::new()),
            history: Mutex::default(),
            hellos: Mutex::default(),
            answers: Mutex::default(),
            sessions: watch::Sender::new(0),
            sent_desired: AtomicU64::new(0),
            newest: Mutex::default(),
            routes: watch::Sender::new(before.is_none_or(|before| *before.routes.borrow())),
            blobs: Mutex::default(),
            sent_bytes: AtomicU64::new(0),
            stop: tokio_util::sync::CancellationToken::new(),
            at: watch::Sender::new(before.map_or(0, |before| *before.at.borrow())),
        });
        let server = Self { address, state };
        let accepting = server.clone();
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = accepting.state.stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else { continue };
                let server = accepting.clone();
                let service = service_fn(move |request| server.clone().answer(request));
                let stop = accepting.state.stop.clone();
                tokio::spawn(async move {
                    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
                    tokio::select! {
                        () = stop.cancelled() => {}
                        _ = connection => {}
                    }
                });
            }
        });
        server
    }

    /// As if it were switched off.
    pub fn stop(&self) {
        self.state.stop.cancel();
    }

    async fn answer(self, mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let path = request.uri().path().to_owned();
        let status = |status| Response::builder().status(status).body(Full::default()).unwrap();
        if request.headers().get(header::AUTHORIZATION).is_none_or(|token| token != "Bearer secret") {
            return Ok(status(StatusCode::UNAUTHORIZED));
        }
        if path == "/v1/agents/session" {
            let key = derive_accept_key(request.headers()[header::SEC_WEBSOCKET_KEY].as_bytes());
            let upgrade = hyper::upgrade::on(&mut request);
            let server = self.clone();
            tokio::spawn(async move {
                let Ok(upgraded) = upgrade.await else { return };
                let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
                server.session(socket).await;
            });
            let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
            let response = response.header(header::CONNECTION, "upgrade").header(header::UPGRADE, "websocket");
            return Ok(response.header(header::SEC_WEBSOCKET_ACCEPT, key).body(Full::default()).unwrap());
        }
        if path == "/v1/blobs" {
            let bytes = request.into_body().collect().await.unwrap().to_bytes();
            self.state.blobs.lock().unwrap().insert(Digest::of(&bytes), bytes.to_vec());
            return Ok(status(StatusCode::CREATED));
        }
        let Some((digest, what)) = path.strip_prefix("/v1/artifacts/").and_then(|rest| rest.split_once('/')) else {
            return Ok(status(StatusCode::NOT_FOUND));
        };
        let Some(packed) = self.state.content.lock().unwrap().get(&digest.parse().unwrap()).cloned() else {
            return Ok(status(StatusCode::NOT_FOUND));
        };
        if what == "manifest" {
            return Ok(Response::new(Full::from(packed.manifest.to_bytes())));
        }
        let range = request.headers()[header::RANGE].to_str().unwrap().strip_prefix("bytes=").unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
        let bytes = packed.archive[from..=to].to_vec();
        self.state.sent_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let content_range = format!("bytes {from}-{to}/{}", packed.archive.len());
        let response = Response::builder().status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, content_range);
        Ok(response.body(Full::from(bytes)).unwrap())
    }

    async fn session<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(self, mut socket: WebSocketStream<S>) {
        let Some(AgentToServer::Hello(hello)) = receive(&mut socket).await else { return };
        assert_eq!(hello.version, PROTOCOL_VERSION);
        self.state.hellos.lock().unwrap().push(hello.clone());
        let answer = self.state.answers.lock().unwrap().pop();
        if let Some(answer) = answer {
            // The agent may be gone already.
            say(&mut socket, &answer).await;
            return;
        }
        let mut known = ReportsHash::default();
        self.state.reports.borrow().values().for_each(|report| known.add(report));
        if !say(&mut socket, &ServerToAgent::Welcome { reports_known: known == hello.reports_hash }).await {
            return;
        }
        let mut desired = self.state.desired.subscribe();
        if desired.borrow().as_ref().is_some_and(|desired| Some(desired.hash()) != hello.desired_hash) {
            desired.mark_changed();
        }
        let mut routes = self.state.routes.subscribe();
        let mut sessions = self.state.sessions.subscribe();
        let mut acknowledged = 0;
        loop {
            tokio::select! {
                () = self.state.stop.cancelled() => return,
                _ = sessions.changed() => return,
                changed = desired.changed() => {
                    changed.unwrap();
                    let Some(desired) = desired.borrow_and_update().clone() else { continue };
                    self.state.sent_desired.fetch_add(1, Ordering::Relaxed);
                    if !say(&mut socket, &ServerToAgent::Desired(desired)).await { return }
                }
                changed = routes.changed() => {
                    changed.unwrap();
                    let obeyed = *routes.borrow_and_update() && acknowledged > 0;
                    if obeyed && !say(&mut socket, &ServerToAgent::Routed { sequence: acknowledged }).await { return }
                }
                message = receive(&mut socket) => match message {
                    None => return,
                    Some(AgentToServer::Hello(_)) => panic!("a second hello"),
                    Some(AgentToServer::Heartbeat) => {}
                    Some(AgentToServer::Report { sequence, reports }) => {
                        self.apply(&hello, sequence, reports);
                        acknowledged = sequence;
                        if !say(&mut socket, &ServerToAgent::Acknowledged { sequence }).await { return }
                        let obeyed = *routes.borrow_and_update();
                        if obeyed && !say(&mut socket, &ServerToAgent::Routed { sequence }).await { return }
                    }
                }
            }
        }
    }

    /// Only what is newer counts, as in the state that real servers share.
    fn apply(&self, hello: &AgentHello, sequence: u64, reports: Vec<Report>) {
        let mut newest = self.state.newest.lock().unwrap();
        let (agent, incarnation) = (hello.agent.0.clone(), hello.incarnation);
        if newest.0 == agent && (newest.1, newest.2) >= (incarnation, sequence) {
            return;
        }
        *newest = (agent, incarnation, sequence);
        self.state.history.lock().unwrap().extend(reports.clone());
        self.state.reports.send_modify(|all| all.extend(reports.into_iter().map(|report| (report.pipeline.to_string(), report))));
    }

    /// Whether connected gateways obey from now on.
    pub fn route(&self, obeyed: bool) {
        self.state.routes.send_replace(obeyed);
    }

    /// What it says in place of a welcome, the next time that an agent says hello.
    pub fn answer_once(&self, answer: ServerToAgent) {
        self.state.answers.lock().unwrap().push(answer);
    }

    /// As if the network broke for a moment.
    pub fn drop_sessions(&self) {
        self.state.sessions.send_modify(|count| *count += 1);
    }

    /// How often it sent a desired state.
    pub fn sent_desired(&self) -> u64 {
        self.state.sent_desired.load(Ordering::Relaxed)
    }

    pub fn hellos(&self) -> Vec<AgentHello> {
        self.state.hellos.lock().unwrap().clone()
    }

    /// Says that `target` should run these, from now on.
    pub fn want(&self, target: &str, releases: &[DesiredRelease]) {
        self.state.at.send_modify(|at| *at += 1);
        self.want_at(target, releases, *self.state.at.borrow());
    }

    pub fn want_at(&self, target: &str, releases: &[DesiredRelease], index: u64) {
        let deployments = releases.iter().map(|release| (release.release.pipeline.clone(), release.clone())).collect();
        let generation = Generation { cluster: 1, index };
        self.state.desired.send_replace(Some(DesiredTarget { generation, target: target.parse().unwrap(), deployments }));
    }

    pub fn keep(&self, packed: &Packed) {
        self.state.content.lock().unwrap().insert(packed.manifest.digest, packed.clone());
    }

    pub fn sent_bytes(&self) -> u64 {
        self.state.sent_bytes.load(Ordering::Relaxed)
    }

    pub fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.state.blobs.lock().unwrap().get(digest).cloned()
    }

    /// How many different blobs it was sent.
    pub fn blobs(&self) -> usize {
        self.state.blobs.lock().unwrap().len()
    }

    /// The generations that agents followed as they said hello.
    pub fn followed(&self) -> Vec<Generation> {
        self.hellos().iter().map(|hello| hello.following).collect()
    }

    /// Every report so far of `pipeline`.
    pub fn history(&self, pipeline: &str) -> Vec<Report> {
        self.state.history.lock().unwrap().iter().filter(|report| report.pipeline.as_str() == pipeline).cloned().collect()
    }

    /// Waits until the last report of `pipeline` is as it should be.
    pub async fn until(&self, pipeline: &str, what: &str, is_so: impl Fn(&Report) -> bool) -> Report {
        let mut reports = self.state.reports.subscribe();
        let waited = tokio::time::timeout(PATIENCE, reports.wait_for(|all| all.get(pipeline).is_some_and(&is_so))).await;
        match waited {
            Ok(all) => all.unwrap()[pipeline].clone(),
            Err(_) => panic!(
                "{pipeline} is not {what}; the last reports: {:#?}",
                self.history(pipeline).iter().rev().take(3).collect::<Vec<_>>()
            ),
        }
    }

    /// Waits until `pipeline` is healthy with release `number` and nothing else runs.
    pub async fn until_healthy(&self, pipeline: &str, number: u64) -> Report {
        self.until(pipeline, &format!("healthy with release {number}"), |report| {
            let is_whole = report.instances.iter().all(|instance| instance.state == InstanceState::Serving);
            report.release.as_ref().is_some_and(|release| release.number == number)
                && report.progress == Progress::Healthy
                && report.instances.iter().all(|instance| instance.release.number == number)
                && is_whole
        })
        .await
    }

    pub async fn until_progress(&self, pipeline: &str, progress: Progress) -> Report {
        self.until(pipeline, progress.name(), |report| report.progress == progress).await
    }
}

async fn receive<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
) -> Option<AgentToServer> {
    loop {
        if let Message::Binary(bytes) = socket.next().await?.ok()? {
            return Some(rmp_serde::from_slice(&bytes).unwrap());
        }
    }
}

/// Whether the agent is still there.
async fn say<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    message: &ServerToAgent,
) -> bool {
    socket.send(Message::binary(rmp_serde::to_vec_named(message).unwrap())).await.is_ok()
}

/// A service out of JSON, quick and of a user that every machine has.
pub fn service(more: serde_json::Value) -> Service {
    let mut value = serde_json::json!({
        "user": "nobody",
        "health": { "interval": "50ms", "timeout": "1s", "start_timeout": "20s", "min_healthy": "100ms" },
        "stop": { "signal": "TERM", "timeout": "5s", "drain": "100ms" },
    });
    for (key, more) in more.as_object().unwrap() {
        match (value.get_mut(key).and_then(|value| value.as_object_mut()), more.as_object()) {
            (Some(object), Some(more)) if key != "env" => object.extend(more.clone()),
            _ => value[key] = more.clone(),
        }
    }
    serde_json::from_value(value).unwrap()
}

/// The web server above, on one of `ports`.
pub fn web(version: u64, mode: &str, ports: &[u16]) -> DesiredService {
    let settings = service(serde_json::json!({
        "command": ["bin/web"],
        "ports": { "http": "auto" },
        "env": { "PORT": "${port.http}", "VERSION": version.to_string(), "MODE": mode },
        "health": { "port": "http", "http": "/healthz" },
    }));
    DesiredService { settings, ports: [("http".parse().unwrap(), ports.to_vec())].into() }
}

pub fn release(pipeline: &str, number: u64, packed: &Packed, services: &[(&str, DesiredService)]) -> DesiredRelease {
    DesiredRelease {
        release: format!("{pipeline}@{number}").parse().unwrap(),
        environment: "test".parse().unwrap(),
        artifact: packed.manifest.digest,
        artifact_size: ByteSize(packed.manifest.size),
        unpacked_size: ByteSize(packed.manifest.unpacked_size),
        manifest: Digest::of(&packed.manifest.to_bytes()),
        services: services.iter().map(|(name, service)| (name.parse().unwrap(), service.clone())).collect(),
    }
}

/// A port that was free a moment ago, below those that the kernel gives out by itself; each once.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Tests may run as processes of their own.
        let spread = std::process::id().wrapping_mul(61) % 9000;
        let port = 11_000 + (spread + NEXT.fetch_add(1, Ordering::Relaxed)) % 9000;
        if TcpListener::bind(("0.0.0.0", port as u16)).is_ok() {
            return port as u16;
        }
    }
}

pub fn free_ports() -> [u16; 2] {
    [free_port(), free_port()]
}

/// A GET on this machine: the body, where the answer is 200.
pub fn get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.starts_with("HTTP/1.1 200").then(|| text.rsplit("\r\n\r\n").next().unwrap().to_owned())
}

/// A target with its agent; whatever is left of it is removed at the end, also of a failed test.
pub struct Target {
    pub name: String,
    pub data_dir: PathBuf,
    _root: tempfile::TempDir,
    config: PathBuf,
    agent: Option<Child>,
    /// Who the agent is, where it is not root, and the programs where that user can run them.
    user: Option<(u32, Programs)>,
}

/// The two programs that a target needs.
struct Programs {
    agent: PathBuf,
    shim: PathBuf,
}

impl Programs {
    /// Where they were built.
    fn built() -> Self {
        Self { agent: std::env::current_exe().unwrap(), shim: SWELL.into() }
    }

    /// The same in `folder`: a target folder may lie where an ordinary user cannot go.
    fn in_folder(folder: &Path) -> Self {
        let to = |name: &str, from: &Path| {
            let to = folder.join(name);
            fs::hard_link(from, &to).or_else(|_| fs::copy(from, &to).map(drop)).unwrap();
            to
        };
        let built = Self::built();
        Self { agent: to("agent", &built.agent), shim: to("swell", &built.shim) }
    }
}

impl Target {
    pub fn new(servers: &[&FakeServer]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self::in_folder(root, "data", servers, "default_user = \"nobody\"")
    }

    /// Whose agent and instances are an ordinary user, who owns its folder.
    pub fn of_user(user: u32, servers: &[&FakeServer], more: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data = root.path().join("data");
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::chown(&data, Some(user), Some(user)).unwrap();
        let programs = Programs::in_folder(root.path());
        let more = format!("shim = {:?}\n{more}", programs.shim);
        let mut target = Self::with_lines(root, "data", servers, &more);
        target.user = Some((user, programs));
        target
    }

    /// With its data in a folder of `root`, and more lines of configuration.
    pub fn in_folder(root: tempfile::TempDir, data: &str, servers: &[&FakeServer], more: &str) -> Self {
        Self::with_lines(root, data, servers, &format!("shim = {SWELL:?}\n{more}"))
    }

    fn with_lines(root: tempfile::TempDir, data: &str, servers: &[&FakeServer], more: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (data_dir, config) = (root.path().join(data), root.path().join("agent.toml"));
        let servers: Vec<String> = servers.iter().map(|server| format!("http://{}", server.address)).collect();
        let text = format!(
            r#"
            data_dir = {data_dir:?}
            servers = {servers:?}
            token = "secret"
            {more}
            [info]
            name = {name:?}
            region = "here"
            zone = "a"
            address = "127.0.0.1"
            agent_version = ""
            labels = {{}}
            ports = {{ first = 20000, last = 29999 }}
            [timing]
            restart_first = "50ms"
            restart_most = "400ms"
            retry_first = "300ms"
            retry_most = "1s"
            fetch_first = "50ms"
            fetch_most = "200ms"
            session_first = "50ms"
            session_most = "200ms"
            "#
        );
        fs::write(&config, text).unwrap();
        Self { name, data_dir, _root: root, config, agent: None, user: None }
    }

    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    pub fn start_with(&mut self, env: &[(&str, &str)]) {
        assert!(self.agent.is_none());
        let log = fs::OpenOptions::new().create(true).append(true).open(self.config.with_file_name("agent.log")).unwrap();
        let mut command = self.command();
        command.envs(env.iter().copied());
        self.agent = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// This very program, as an agent: see [`agent_process`].
    fn command(&self) -> Command {
        let mut command = match &self.user {
            Some((user, programs)) => {
                let mut command = Command::new(&programs.agent);
                command.uid(*user).gid(*user);
                command
            }
            None => Command::new(Programs::built().agent),
        };
        command.args(["support::agent_process", "--exact", "--nocapture"]).env(AGENT_CONFIG, &self.config);
        command
    }

    /// A second agent for the same folder: what it says.
    pub fn start_second(&self) -> String {
        let output = self.command().output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// As a power cut would, for the agent alone.
    pub fn kill(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    pub fn stop(&mut self) {
        let mut agent = self.agent.take().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(agent.wait().unwrap().success());
    }

    /// Waits for the agent's own end, such as at a crash point.
    pub fn wait(&mut self) {
        let started = Instant::now();
        while self.agent.as_mut().unwrap().try_wait().unwrap().is_none() {
            if started.elapsed() > PATIENCE {
                self.show_log();
                panic!("the agent does not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.agent = None;
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.config.with_file_name("agent.log")).unwrap_or_default()
    }

    pub fn show_log(&self) {
        eprintln!("{}", self.log());
    }

    /// The commands' processes of a pipeline that run now, by the names of their shims' folders.
    pub fn running(&self, pipeline: &str) -> BTreeMap<String, i32> {
        let folder = self.data_dir.join("pipelines").join(pipeline).join("instances");
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(text) = fs::read(entry.path().join("child.pid")) else { continue };
            let process: swell_sandbox::shim::ProcessRef = serde_json::from_slice(&text).unwrap();
            if process.is_alive() {
                found.insert(entry.file_name().into_string().unwrap(), process.pid);
            }
        }
        found
    }

    /// Everything that an instance of ours leaves while it exists: processes and control groups.
    pub fn traces(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            let mark = format!("SWELL_TARGET={}", self.name);
            if environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
                found.push(format!("process {}", entry.file_name().to_string_lossy()));
            }
        }
        for mount in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let groups = fs::read_dir(mount.path().join("groundswell/agent")).into_iter().flatten().flatten();
            let own = format!("{}-", self.name);
            let ours = groups.filter(|group| group.file_name().to_string_lossy().starts_with(&own));
            found.extend(ours.map(|group| group.path().display().to_string()));
        }
        found
    }

    pub fn releases(&self, pipeline: &str) -> BTreeSet<String> {
        names(&self.data_dir.join("pipelines").join(pipeline).join("releases"))
    }
}

pub fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().ok();
            agent.wait().ok();
        }
        if std::thread::panicking() {
            self.show_log();
        }
        for pipeline in names(&self.data_dir.join("pipelines")) {
            let instances = self.data_dir.join("pipelines").join(pipeline).join("instances");
            for instance in names(&instances) {
                swell_sandbox::shim::reap(&instances.join(instance)).ok();
            }
        }
    }
}

/// Waits for something on this machine.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
