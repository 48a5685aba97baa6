//! The API as its clients meet it: a real server on loopback with a real node, in a folder of its own. Table of contents, and the
//! server that every test starts.

mod access;
mod git;
mod openapi;
mod resources;
mod rollouts;
mod streams;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

use super::{Api, Options, serve};
use swell_artifacts::store::{ContentStore, Embedded, EmbeddedOptions};
use swell_model::{
    command::{Action, Outcome},
    ids::BuildId,
    interfaces::{Link, LogChunk, LogSource, Proposal, ProposeError, Proposer, SessionSink},
    principal::{Principal, Role},
    routing::{
        messages::{GatewayHello, GatewayToServer, ServerToGateway},
        update::RouteUpdate,
    },
    wire::{AgentToServer, ServerToAgent},
};
use swell_raft::{self, Node};
use swell_repositories::{HostedRepositories, Pushes};
use swell_security::tokens::Tokens;

/// How long a test waits for anything.
const SOON: Duration = Duration::from_secs(20);

pub struct Server {
    pub base: String,
    pub node: Node,
    pub content: Arc<dyn ContentStore>,
    pub sessions: Arc<Sessions>,
    pub logs: Arc<Logs>,
    pub client: reqwest::Client,
    dir: tempfile::TempDir,
    serving: tokio::task::JoinHandle<()>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(swell_raft::Options::new(dir.path().join("raft"), 1)).await.unwrap();
        let content: Arc<dyn ContentStore> =
            Arc::new(Embedded::open(dir.path().join("content"), EmbeddedOptions::default()).await.unwrap());
        let (sessions, logs) = (Arc::new(Sessions::default()), Arc::new(Logs::default()));
        let pushes = Pushes { node: node.clone(), proposer: Arc::new(node.clone()), content: Arc::clone(&content) };
        let hosted = HostedRepositories::open(dir.path().join("git"), Arc::new(pushes)).await.unwrap();
        let api = Api {
            node: node.clone(),
            proposer: Arc::new(node.clone()),
            content: Arc::clone(&content),
            sessions: sessions.clone(),
            logs: logs.clone(),
            git: Some(hosted),
            commits: swell_repositories::Commits::new(node.clone(), None),
            tokens: Arc::new(Tokens::load_or_create(dir.path().join("tokens")).unwrap()),
            options,
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, api, async { drop(stopped.await) }));
        let client = reqwest::Client::new();
        let server = Self { base, node, content, sessions, logs, client, dir, serving, stop: Some(stop) };
        server.leads().await;
        server
    }

    /// Waits until the node leads, so that a test's first proposal is not the one that finds out.
    async fn leads(&self) {
        let mut leadership = self.node.leadership();
        let led = leadership.wait_for(|leadership| leadership.is_leader);
        tokio::time::timeout(SOON, led).await.unwrap().unwrap();
    }

    pub fn tokens(&self) -> std::path::PathBuf {
        self.dir.path().join("tokens")
    }

    pub fn token(&self, role: Role) -> String {
        Tokens::read(&self.tokens(), role).unwrap()
    }

    pub fn request(&self, method: Method, path: &str, role: Role) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base)).bearer_auth(self.token(role)).timeout(SOON)
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path, Role::Viewer)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request(Method::POST, path, Role::Admin).json(&body)).await
    }

    /// A 2xx answer.
    pub async fn done(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.post(path, body).await;
        assert!(status.is_success(), "{path}: {status} {answer}");
        answer
    }

    pub async fn pipeline(&self, name: &str) -> Value {
        self.done("/v1/pipelines", serde_json::json!({ "name": name, "source": { "remote": "https://git.example/x" } })).await
    }

    /// What an actor would propose.
    pub async fn apply(&self, action: impl Into<Action>) -> Outcome {
        self.try_apply(action).await.unwrap()
    }

    async fn try_apply(&self, action: impl Into<Action>) -> Result<Outcome, ProposeError> {
        self.node.propose(Proposal::new(action, Principal::system("test"))).await
    }
}

pub async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// A problem is of RFC 9457's kind and says what to do.
pub fn assert_problem(status: StatusCode, body: &Value, code: &str) {
    assert_eq!(body["code"], code, "{body}");
    assert_eq!(body["status"], status.as_u16(), "{body}");
    assert_eq!(body["type"], format!("urn:groundswell:problem:{code}"));
    for field in ["title", "detail", "hint"] {
        assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {body}");
    }
}

/// Answers every agent's report with a heartbeat, and remembers what was said.
#[derive(Default)]
pub struct Sessions {
    pub heard: Mutex<Vec<String>>,
    /// What the next gateway is told.
    pub routes: Mutex<Option<RouteUpdate>>,
}

impl SessionSink for Sessions {
    fn agent(&self, mut link: Link<AgentToServer, ServerToAgent>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            while let Some(said) = link.incoming.next().await {
                let end = matches!(&said, AgentToServer::Report { reports, .. } if reports.is_empty());
                self.heard.lock().unwrap().push(format!("{said:?}"));
                if end || link.outgoing.try_send(ServerToAgent::Heartbeat).is_err() {
                    return;
                }
            }
        })
    }

    fn gateway(&self, hello: GatewayHello, mut link: Link<GatewayToServer, ServerToGateway>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.heard.lock().unwrap().push(hello.name);
            link.outgoing.try_send(ServerToGateway::Heartbeat).unwrap();
            if let Some(routes) = self.routes.lock().unwrap().take() {
                link.outgoing.try_send(ServerToGateway::Routes(routes)).unwrap();
            }
            while link.incoming.next().await.is_some() {}
        })
    }
}

/// Holds the log of one build.
#[derive(Default)]
pub struct Logs {
    pub chunks: Mutex<Option<(BuildId, Vec<LogChunk>)>>,
}

impl LogSource for Logs {
    fn follow(&self, build: BuildId, _: u32, start: u64) -> Option<BoxStream<'static, LogChunk>> {
        let chunks = self.chunks.lock().unwrap().clone().filter(|(held, _)| *held == build)?.1;
        let wanted = chunks.into_iter().filter(move |chunk| chunk.end > start);
        Some(futures::stream::iter(wanted).chain(futures::stream::pending()).boxed())
    }
}

/// A small artifact, as a package phase would leave it: its bytes.
pub fn packed(dir: &Path, text: &str) -> Vec<u8> {
    use swell_artifacts::archive::{PackOptions, pack};
    let tree = dir.join(text);
    std::fs::create_dir_all(tree.join("bin")).unwrap();
    std::fs::write(tree.join("bin/web"), text).unwrap();
    let mut bytes = Vec::new();
    pack(&tree, &mut bytes, PackOptions { mtime_secs: 1 }).unwrap();
    bytes
}
