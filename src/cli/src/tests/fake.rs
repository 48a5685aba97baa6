//! A scripted server, and a client whose output can be read.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{Request, Response, body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::{
    Exit, Failure, Hooks,
    args::Cli,
    check::Check,
    config::{Settings, Sources},
    context::{Context, Pace},
    globals::Globals,
    output::{ColorChoice, Output, Surroundings},
    start,
};

/// A received request.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: BTreeMap<String, String>,
    pub body: Value,
    /// The number of earlier requests with this method and path.
    pub before: usize,
}

/// The answer to a request.
pub enum Reply {
    Json(u16, Value),
    /// Chunks; then the stream stays open (true) or ends.
    Stream(Vec<String>, bool),
    /// The connection is closed without an answer.
    Cut,
}

type Script = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

pub struct Fake {
    pub addr: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::AbortHandle,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (script, kept): (Script, _) = (Arc::new(script), seen.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (script, kept) = (script.clone(), kept.clone());
                connections.spawn(async move {
                    let service = service_fn(|request| answer(request, script.clone(), kept.clone()));
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await.ok();
                });
            }
        });
        Self { addr, seen, task: task.abort_handle() }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The received requests with this method and path.
    pub fn seen_at(&self, method: &str, path: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.method == method && seen.path == path).collect()
    }
}

async fn answer(
    request: Request<Incoming>,
    script: Script,
    kept: Arc<Mutex<Vec<Seen>>>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, io::Error> {
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let headers = parts.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()));
    let mut seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: headers.collect(),
        body: serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes).into_owned())),
        before: 0,
    };
    {
        let mut kept = kept.lock().unwrap();
        seen.before = kept.iter().filter(|other| other.method == seen.method && other.path == seen.path).count();
        kept.push(seen.clone());
    }
    let (status, chunks, open) = match script(&seen) {
        Reply::Json(status, value) => (status, vec![if status == 204 { String::new() } else { value.to_string() }], false),
        Reply::Stream(chunks, open) => (200, chunks, open),
        Reply::Cut => return Err(io::Error::other("cut")),
    };
    let frames = futures::stream::iter(chunks.into_iter().map(|chunk| Ok(Frame::data(Bytes::from(chunk)))));
    let body = match open {
        true => BodyExt::boxed(StreamBody::new(frames.chain(futures::stream::pending()))),
        false => BodyExt::boxed(StreamBody::new(frames)),
    };
    Ok(Response::builder().status(status).body(body).unwrap())
}

/// Output that can be read back.
#[derive(Clone, Default)]
pub struct Words(Arc<Mutex<Vec<u8>>>);

impl Words {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Words {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The output and exit code of a command.
#[derive(Debug)]
pub struct Said {
    pub out: String,
    pub err: String,
    pub exit: Exit,
}

impl Said {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("not one JSON value ({error}): {}", self.out))
    }

    pub fn json_lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub fn hooks() -> Hooks {
    Hooks {
        pack: |dir: &Path, out: &mut dyn Write, mtime_secs: u64| Ok(write!(out, "<{} {mtime_secs}>", dir.display())?),
        isolation: || vec![Check::passed("namespaces", "available")],
    }
}

/// A parsed command, not yet running.
pub struct Typed {
    pub context: Arc<Context>,
    command: crate::Command,
    out: Words,
    err: Words,
}

/// `swell` with these arguments, without a terminal, against the server at `addr`.
pub fn typed(addr: &str, arguments: &[&str]) -> Typed {
    typed_with(addr, arguments, &[("SWELL_TOKEN", "swell_developer_1"), ("SWELL_USER", "ada")])
}

pub fn typed_with(addr: &str, arguments: &[&str], vars: &[(&'static str, &str)]) -> Typed {
    let cli: Cli = start::parse([&["swell"], arguments].concat()).unwrap();
    let mut vars: BTreeMap<&str, String> = vars.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    vars.insert("SWELL_ADDR", addr.to_owned());
    let var = move |name: &str| vars.get(name).cloned();
    let nowhere = tempfile::tempdir().unwrap();
    let sources = Sources { var: &var, folder: nowhere.path(), system_file: &nowhere.path().join("none") };
    let globals: Globals = cli.globals;
    let settings = Settings::from_sources(&globals, &sources).unwrap();
    let (out, err) = (Words::default(), Words::default());
    let output = Output::new(
        globals.json,
        globals.quiet,
        Surroundings::default(),
        ColorChoice::Auto,
        Box::new(out.clone()),
        Box::new(err.clone()),
    );
    let ms = Duration::from_millis;
    let pace = Pace { poll_every: ms(10), heartbeat_every: ms(10_000), away_max: Duration::from_secs(20) };
    let context = Context {
        output,
        settings,
        hooks: hooks(),
        zone: jiff::tz::TimeZone::UTC,
        pace,
        interrupt: Default::default(),
        var: Box::new(var),
    };
    Typed { context: Arc::new(context), command: cli.command, out, err }
}

impl Typed {
    pub fn pace(mut self, change: impl FnOnce(&mut Pace)) -> Self {
        change(&mut Arc::get_mut(&mut self.context).unwrap().pace);
        self
    }

    /// Runs it to its end, within 30 s.
    pub async fn run(self) -> Said {
        let Self { context, command, out, err } = self;
        let running = async {
            let end: Result<Exit, Failure> = start::dispatch(&context, command).await;
            start::exit_of(&context.output, end)
        };
        let ended = tokio::time::timeout(Duration::from_secs(30), running).await;
        let exit = ended.unwrap_or_else(|_| panic!("no end; said so far:\n{}\n{}", out.text(), err.text()));
        Said { out: out.text(), err: err.text(), exit }
    }

    pub fn out(&self) -> Words {
        self.out.clone()
    }

    pub fn err(&self) -> Words {
        self.err.clone()
    }
}

/// Waits until `holds`, for at most 30 s.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain for: {what}");
}
