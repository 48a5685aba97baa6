//! The state that handlers share: reading replicated state off the async threads, proposing changes, and answers with their revision.
//! Knows nothing of single resources.

use std::{collections::HashMap, ops::Deref, sync::Arc, time::Duration};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use hyper::{
    Method, StatusCode,
    header::{ETAG, HeaderName, HeaderValue, LOCATION},
};
use serde::Serialize;

use super::{
    access::{Caller, Rule},
    event_stream::EventStreams,
    input::Guards,
    metrics::Meters,
    problem::Problem,
    routes,
};
use swell_artifacts::store::ContentStore;
use swell_model::{
    cluster::Answer as Remembered,
    command::{Action, Outcome},
    event::Subject,
    interfaces::{LogSource, Proposal, Proposer, SessionSink},
    rejection::Rejection,
    tables::{Key, ReadTables, Record, key},
};
use swell_raft::{Node, View};
use swell_repositories::{Commits, HostedRepositories};
use swell_security::tokens::Tokens;

/// How long the answer to a change waits until this server has applied the change. Followers apply a little later than the leader.
const APPLIED_WITHIN: Duration = Duration::from_secs(5);
/// The log index of the state that was read.
pub const APPLIED_HEADER: HeaderName = HeaderName::from_static("swell-applied");
/// Set when the answer repeats that of an earlier request with the same `Idempotency-Key`.
pub const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The parts that the API is made of.
pub struct Api {
    pub node: Node,
    /// Where changes are proposed: usually the node itself.
    pub proposer: Arc<dyn Proposer>,
    /// The bytes of artifacts, logs and failures' output.
    pub content: Arc<dyn ContentStore>,
    /// Handles the sessions of agents and gateways.
    pub sessions: Arc<dyn SessionSink>,
    /// The logs of running builds.
    pub logs: Arc<dyn LogSource>,
    /// The hosted repositories; none if this server hosts none.
    pub git: Option<HostedRepositories>,
    /// Resolves refs to commits.
    pub commits: Commits,
    pub tokens: Arc<Tokens>,
    pub options: Options,
}

/// Limits of the API.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a client may take to begin, and to send a request's head. 15 s.
    pub head_timeout: Duration,
    /// How long an answer may take to begin, unless the request is a stream. 30 s: longer than a proposal may take.
    pub request_timeout: Duration,
    /// How long a stream may be silent before it is closed. 60 s.
    pub idle_timeout: Duration,
    /// How often a quiet event stream sends its cursor as a heartbeat. 10 s: proxies close connections after 30 s or 60 s of silence.
    pub heartbeat: Duration,
    /// The largest artifact that may be uploaded, in bytes. 64 GiB.
    pub artifact_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(15),
            request_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            heartbeat: Duration::from_secs(10),
            artifact_bytes_max: swell_artifacts::pieces::CONTENT_BYTES_MAX,
        }
    }
}

/// The API as handlers share it.
#[derive(Clone)]
pub struct App {
    api: Arc<Api>,
    pub(super) meters: Arc<Meters>,
    pub(super) rules: Arc<Rules>,
    pub(super) events: EventStreams,
}

/// The access rules, by path.
pub struct Rules(HashMap<String, Vec<Rule>>);

impl Rules {
    fn new(rules: Vec<Rule>) -> Self {
        let mut by_path: HashMap<String, Vec<Rule>> = HashMap::new();
        rules.into_iter().for_each(|rule| by_path.entry(rule.path.clone()).or_default().push(rule));
        Self(by_path)
    }

    /// The rule of an endpoint; `path` is the one that the router matched.
    pub fn find(&self, method: &Method, path: &str) -> Option<&Rule> {
        self.0.get(path)?.iter().find(|rule| rule.method == *method)
    }
}

impl Deref for App {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl App {
    pub(super) fn new(api: Api) -> Self {
        let events = EventStreams::start(api.node.clone());
        Self { api: Arc::new(api), meters: Arc::default(), rules: Arc::new(Rules::new(routes::rules())), events }
    }

    /// Reads this server's state on a blocking thread. It may lag behind the leader's.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&View) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let view = self.node.view();
        on_blocking_thread(move || read(&view)).await
    }

    /// Reads state that includes everything acknowledged so far, for reads that decide something.
    pub async fn read_latest<T: Send + 'static>(
        &self,
        read: impl FnOnce(&View) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let view = self.node.linearizable_view().await?;
        on_blocking_thread(move || read(&view)).await
    }

    /// Proposes a change and waits until this server has applied it.
    pub async fn propose(&self, caller: Caller, guards: Guards, action: impl Into<Action>) -> Result<Outcome, Problem> {
        let proposal = Proposal {
            action: action.into(),
            principal: caller.0,
            idempotency_key: guards.idempotency_key,
            fingerprint: guards.fingerprint,
            epoch: None,
            if_revision: guards.if_revision,
        };
        let begun = std::time::Instant::now();
        let proposed = self.proposer.propose(proposal).await;
        self.meters.record(begun.elapsed());
        let outcome = proposed?;
        self.wait_until_applied(&outcome).await;
        Ok(outcome)
    }

    /// The outcome of an earlier request with the same `Idempotency-Key`. For requests whose action depends on state, which may have
    /// changed since.
    pub async fn remembered(&self, guards: &Guards) -> Result<Option<Outcome>, Problem> {
        let Some(idempotency_key) = guards.idempotency_key.clone() else { return Ok(None) };
        let fingerprint = guards.fingerprint;
        self.read_latest(move |view| {
            let kept: Option<Remembered> = view.get(&key(idempotency_key.as_str()))?;
            Ok(kept.map(|kept| kept.replay(fingerprint)).transpose()?)
        })
        .await
    }

    /// Waits until this server has applied `outcome`, so that the client sees its own change. Bounded: a follower that lags far
    /// behind answers with the state that it has.
    async fn wait_until_applied(&self, outcome: &Outcome) {
        let mut last = self.node.last_event();
        let shown = tokio::time::timeout(APPLIED_WITHIN, last.wait_for(|last| *last >= outcome.last_event)).await;
        if !matches!(shown, Ok(Ok(_))) {
            tracing::warn!(last_event = %outcome.last_event, "change not applied on this server in time, answering with older state");
        }
    }
}

async fn on_blocking_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, Problem> + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Problem::internal(error)))
}

/// The record under `key`, or the problem that `subject` does not exist.
pub fn existing<R: Record>(view: &impl ReadTables, key: &Key, subject: impl FnOnce() -> Subject) -> Result<R, Problem> {
    view.get(key)?.ok_or_else(|| Rejection::NotFound(subject()).into())
}

/// An answer about one resource.
pub struct Answer<T> {
    status: StatusCode,
    body: T,
    revision: Option<u64>,
    applied: u64,
    location: Option<String>,
    replayed: bool,
}

impl<T> Answer<T> {
    /// The answer to a read.
    pub fn read(view: &View, body: T, revision: Option<u64>) -> Self {
        Self { status: StatusCode::OK, body, revision, applied: view.applied(), location: None, replayed: false }
    }

    /// Marks it as the answer to a change.
    pub fn after(mut self, outcome: &Outcome) -> Self {
        self.replayed = outcome.replayed;
        self
    }

    /// Marks it as created at `location`: 201, also when the answer repeats that of an earlier request.
    pub fn created(mut self, location: impl Into<String>) -> Self {
        self.status = StatusCode::CREATED;
        self.location = Some(location.into());
        self
    }
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        let mut put = |name: HeaderName, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        };
        put(APPLIED_HEADER, self.applied.to_string());
        if let Some(revision) = self.revision {
            put(ETAG, format!("\"{revision}\""));
        }
        if let Some(location) = self.location {
            put(LOCATION, location);
        }
        if self.replayed {
            put(REPLAYED_HEADER, "true".to_owned());
        }
        response
    }
}
