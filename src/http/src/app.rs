//! What every handler has at hand: reading state off the async threads, proposing changes, and answers with their revision.
//! Knows nothing of single resources.

use std::{ops::Deref, sync::Arc, time::Duration};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use hyper::{
    StatusCode,
    header::{ETAG, HeaderName, HeaderValue, LOCATION},
};
use serde::Serialize;

use super::{access::Caller, input::Guards, metrics::Meters, problem::Problem};
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

/// How long an answer to a change waits until this server shows the change. Followers apply a little later than leaders.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);
/// The log index of the state that was read.
pub const APPLIED_HEADER: HeaderName = HeaderName::from_static("swell-applied");
/// Says that the answer is the remembered one of an earlier request with the same `Idempotency-Key`.
pub const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotency-replayed");

/// What the API is made of; `main` wires it.
pub struct Api {
    /// State.
    pub node: Node,
    /// Where changes are proposed: mostly the node itself.
    pub proposer: Arc<dyn Proposer>,
    /// The bytes of artifacts, logs and evidence.
    pub content: Arc<dyn ContentStore>,
    /// Takes over the sessions of agents and gateways.
    pub sessions: Arc<dyn SessionSink>,
    /// The logs of builds at work.
    pub logs: Arc<dyn LogSource>,
    /// The repositories that Groundswell hosts; none: it hosts none.
    pub git: Option<HostedRepositories>,
    /// From refs to commits.
    pub commits: Commits,
    /// Who may ask.
    pub tokens: Arc<Tokens>,
    /// Limits.
    pub options: Options,
}

/// Limits of the API.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a client may take to begin, and to send a request's head. 15 s.
    pub head_timeout: Duration,
    /// How long an answer may take to begin, where nothing is streamed. 30 s: longer than a proposal may take.
    pub request_timeout: Duration,
    /// How long a stream may be silent before it is given up. 60 s.
    pub idle_timeout: Duration,
    /// How often a stream of events says that it is alive, with its cursor. 10 s: proxies cut what is silent for 30 s or 60 s.
    pub heartbeat: Duration,
    /// The largest artifact that may be pushed, in bytes. 64 GiB.
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
}

impl Deref for App {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl App {
    pub(super) fn new(api: Api) -> Self {
        Self { api: Arc::new(api), meters: Arc::default() }
    }

    /// Reads state as this server has it, on a thread that may block.
    pub async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let view = self.node.view();
        on_blocking_thread(move || look(&view)).await
    }

    /// Reads state that includes everything acknowledged before, for what decides something.
    pub async fn read_latest<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let view = self.node.linearizable_view().await?;
        on_blocking_thread(move || look(&view)).await
    }

    /// Proposes, and waits until this server shows the outcome.
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
        self.shows(&outcome).await;
        Ok(outcome)
    }

    /// The answer to an earlier request with the same `Idempotency-Key`: for requests whose action follows from state, which may
    /// have changed since.
    pub async fn remembered(&self, guards: &Guards) -> Result<Option<Outcome>, Problem> {
        let Some(idempotency_key) = guards.idempotency_key.clone() else { return Ok(None) };
        let fingerprint = guards.fingerprint;
        self.read_latest(move |view| {
            let kept: Option<Remembered> = view.get(&key(idempotency_key.as_str()))?;
            Ok(kept.map(|kept| kept.replay(fingerprint)).transpose()?)
        })
        .await
    }

    /// Waits until this server has applied `outcome`, so that whoever made a change sees it. Bounded: a follower that lags far
    /// behind answers with what it has.
    async fn shows(&self, outcome: &Outcome) {
        let mut last = self.node.last_event();
        let shown = tokio::time::timeout(SHOWN_WITHIN, last.wait_for(|last| *last >= outcome.last_event)).await;
        if !matches!(shown, Ok(Ok(_))) {
            tracing::warn!(last_event = %outcome.last_event, "this server does not show an applied change yet");
        }
    }
}

async fn on_blocking_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, Problem> + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Problem::internal(error)))
}

/// The record under `key`, or the problem that there is none.
pub fn existing<R: Record>(view: &impl ReadTables, key: &Key, subject: impl FnOnce() -> Subject) -> Result<R, Problem> {
    view.get(key)?.ok_or_else(|| Rejection::NotFound(subject()).into())
}

/// An answer about one thing.
pub struct Answer<T> {
    status: StatusCode,
    body: T,
    revision: Option<u64>,
    applied: u64,
    location: Option<String>,
    replayed: bool,
}

impl<T> Answer<T> {
    /// What was read.
    pub fn read(view: &View, body: T, revision: Option<u64>) -> Self {
        Self { status: StatusCode::OK, body, revision, applied: view.applied(), location: None, replayed: false }
    }

    /// What a change led to.
    pub fn after(mut self, outcome: &Outcome) -> Self {
        self.replayed = outcome.replayed;
        self
    }

    /// What was created, at `location`; 201, also when the answer is a remembered one.
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
