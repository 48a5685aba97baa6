//! The narrow traits at which modules meet that may not import each other; `main` wires them.

use futures::{channel::mpsc, future::BoxFuture, stream::BoxStream};

use crate::{
    cluster::Epoch,
    command::{Action, Outcome},
    digest::Digest,
    ids::BuildId,
    principal::Principal,
    rejection::Rejection,
    routing::messages::{GatewayHello, GatewayToServer, ServerToGateway},
    units::Timestamp,
    wire::{AgentToServer, ServerToAgent},
};

/// What someone proposes.
#[derive(Debug, Clone)]
pub struct Proposal {
    pub action: Action,
    pub principal: Principal,
    /// A retry with the same key gets the first answer.
    pub idempotency_key: Option<String>,
    /// What the key stands for: the key with another fingerprint is refused. None: whoever chose the key made it of what it stands for.
    pub fingerprint: Option<Digest>,
    /// The leadership that sends it, where an actor does.
    pub epoch: Option<Epoch>,
    /// Only while the subject's last change is this one.
    pub if_revision: Option<u64>,
}

impl Proposal {
    /// `action`, proposed by `principal`, with nothing else.
    pub fn new(action: impl Into<Action>, principal: Principal) -> Self {
        Self { action: action.into(), principal, idempotency_key: None, fingerprint: None, epoch: None, if_revision: None }
    }
}

/// Why a proposal was not applied.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// The rules say no. Nothing changed.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// No server leads at the moment. Nothing is known to have changed; propose again with the same idempotency key.
    #[error("no server leads at the moment")]
    NoLeader,
    /// More is waiting than may; nothing changed.
    #[error("too many commands are waiting; try again in a moment")]
    Busy,
    /// It did not end in time; it may yet be applied. Propose again with the same idempotency key.
    #[error("the command was not applied in time; it may yet be")]
    TimedOut,
    /// This server stopped, such as for a full disk.
    #[error("this server has stopped: {0}")]
    Stopped(String),
}

impl ProposeError {
    /// Whether the same proposal, with the same idempotency key, may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            ProposeError::Rejected(rejection) => rejection.retryable(),
            ProposeError::NoLeader | ProposeError::Busy | ProposeError::TimedOut => true,
            ProposeError::Stopped(_) => false,
        }
    }
}

/// Whoever may propose: the server's own Raft node, or a client of one.
pub trait Proposer: Send + Sync {
    /// Proposes, waits until it is applied on a majority, and returns what it led to.
    fn propose(&self, proposal: Proposal) -> BoxFuture<'_, Result<Outcome, ProposeError>>;
}

/// How many frames wait on either side of a session, at the most.
pub const LINK_FRAMES_MAX: usize = 64;

/// One session, as frames. Both sides are bounded by [`LINK_FRAMES_MAX`]; dropping either ends the session.
pub struct Link<In, Out> {
    /// What the other side says.
    pub incoming: mpsc::Receiver<In>,
    /// What it is told.
    pub outgoing: mpsc::Sender<Out>,
}

/// Takes over the sessions that `http` accepts.
pub trait SessionSink: Send + Sync {
    /// An agent's. Returns when the session is over.
    fn agent(&self, link: Link<AgentToServer, ServerToAgent>) -> BoxFuture<'_, ()>;

    /// A gateway's. Returns when the session is over.
    fn gateway(&self, hello: GatewayHello, link: Link<GatewayToServer, ServerToGateway>) -> BoxFuture<'_, ()>;
}

/// A line of a build's log.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LogChunk {
    /// Where it begins in the attempt's raw log, in bytes.
    pub start: u64,
    /// Where the next one begins.
    pub end: u64,
    /// When it was written.
    pub at: Timestamp,
    /// Whether it came on standard error.
    pub stderr: bool,
    pub phase: String,
    /// What was written, as text; what is not UTF-8 is replaced.
    pub text: String,
}

/// Where the log of a live attempt is read.
pub trait LogSource: Send + Sync {
    /// The log from byte `start` on, followed until the attempt ends. None where this server does not hold it.
    fn follow(&self, build: BuildId, attempt: u32, start: u64) -> Option<BoxStream<'static, LogChunk>>;
}
