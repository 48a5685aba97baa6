//! Bodies that pass the gateway: a client's to an instance (bounded, timed, and kept whole for another attempt until it is read),
//! and an instance's to the client (timed; the request counts as in flight until its end). Knows nothing of routes or retries.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::{
    endpoint::{InFlight, now_ms},
    measure::{ReleaseMeter, unix_second},
};

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a body ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the body is longer than the gateway accepts; send less or raise `request_body_max`")]
    TooLong,
    /// Nothing arrived for longer than `idle_timeout`.
    #[error("the body stalled for too long; send faster or raise `idle_timeout`")]
    Stalled,
    /// Its sender closed the connection or sent what is not a body.
    #[error("the body broke off: its sender closed the connection or sent invalid data")]
    BrokenOff,
}

/// Wakes up when a body has stalled for too long. Costs nothing while frames are ready.
#[derive(Debug)]
struct Idle {
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self { limit, sleep: None }
    }

    /// Polled when there is no frame; ready when the time is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit))).as_mut().poll(cx)
    }

    fn reset(&mut self) {
        self.sleep = None;
    }
}

/// A client's body, shared by the attempts of its request. The first attempt that reads it takes it.
#[derive(Debug)]
pub struct ClientBody {
    untouched: Mutex<Option<Incoming>>,
    size: SizeHint,
    bytes_max: u64,
    idle_limit: Duration,
    moved_ms: AtomicU64,
    failure: AtomicU8,
}

impl ClientBody {
    /// A body of which at most `bytes_max` bytes are passed on and which may stall for `idle_limit`.
    pub fn new(body: Incoming, bytes_max: u64, idle_limit: Duration) -> Arc<Self> {
        let size = body.size_hint();
        Arc::new(Self {
            untouched: Mutex::new(Some(body)),
            size,
            bytes_max,
            idle_limit,
            moved_ms: AtomicU64::new(now_ms()),
            failure: AtomicU8::new(0),
        })
    }

    /// Whether no attempt has read any of it.
    pub fn is_untouched(&self) -> bool {
        self.untouched.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Time of the last frame, as [`now_ms`].
    pub fn moved_ms(&self) -> u64 {
        self.moved_ms.load(Relaxed)
    }

    /// Why it ended early, if it did.
    pub fn failure(&self) -> Option<BodyError> {
        match self.failure.load(Relaxed) {
            1 => Some(BodyError::TooLong),
            2 => Some(BodyError::Stalled),
            3 => Some(BodyError::BrokenOff),
            _ => None,
        }
    }

    fn fail(&self, error: BodyError) -> BodyError {
        let code = match error {
            BodyError::TooLong => 1,
            BodyError::Stalled => 2,
            BodyError::BrokenOff => 3,
        };
        self.failure.store(code, Relaxed);
        error
    }
}

/// A request's body as one attempt sends it.
#[derive(Debug)]
pub enum RequestBody {
    Empty,
    /// In memory, so that every attempt sends the same.
    Buffered(Option<Bytes>),
    /// Passed on as it arrives.
    Streamed(Box<Streamed>),
}

/// State of [`RequestBody::Streamed`].
#[derive(Debug)]
pub struct Streamed {
    source: Arc<ClientBody>,
    body: Option<Incoming>,
    passed: u64,
    idle: Idle,
}

impl RequestBody {
    /// Passes on `source` as it arrives.
    pub fn streamed(source: Arc<ClientBody>) -> Self {
        let idle = Idle::new(source.idle_limit);
        Self::Streamed(Box::new(Streamed { source, body: None, passed: 0, idle }))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Buffered(bytes) => {
                Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Streamed(streamed) => streamed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Buffered(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Streamed(streamed) => streamed.body.as_ref().is_some_and(Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Buffered(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Streamed(streamed) => streamed.body.as_ref().map_or_else(|| streamed.source.size, Body::size_hint),
        }
    }
}

impl Streamed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = match &mut self.body {
            Some(body) => body,
            none => match self.source.untouched.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(body) => none.insert(body),
                // Another attempt took it: this one must not look complete.
                None => return Poll::Ready(Some(Err(BodyError::BrokenOff))),
            },
        };
        let Poll::Ready(next) = Pin::new(body).poll_frame(cx) else {
            ready!(self.idle.poll(cx));
            return Poll::Ready(Some(Err(self.source.fail(BodyError::Stalled))));
        };
        self.idle.reset();
        self.source.moved_ms.store(now_ms(), Relaxed);
        Poll::Ready(next.map(|frame| {
            let frame = frame.map_err(|_| self.source.fail(BodyError::BrokenOff))?;
            self.passed += frame.data_ref().map_or(0, |data| data.len() as u64);
            if self.passed > self.source.bytes_max { Err(self.source.fail(BodyError::TooLong)) } else { Ok(frame) }
        }))
    }
}

/// Body of an answer.
#[derive(Debug)]
pub enum ResponseBody {
    /// The gateway's own.
    Own(Option<Bytes>),
    /// An instance's, as it arrives.
    Passed(Box<Passed>),
}

/// State of [`ResponseBody::Passed`].
#[derive(Debug)]
pub struct Passed {
    body: Incoming,
    idle: Idle,
    meter: Arc<ReleaseMeter>,
    _in_flight: InFlight,
}

impl ResponseBody {
    /// Passes on an instance's body; `in_flight` ends with it.
    pub fn passed(body: Incoming, idle_limit: Duration, meter: Arc<ReleaseMeter>, in_flight: InFlight) -> Self {
        Self::Passed(Box::new(Passed { body, idle: Idle::new(idle_limit), meter, _in_flight: in_flight }))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let passed = match self.get_mut() {
            Self::Own(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Passed(passed) => passed,
        };
        let Poll::Ready(next) = Pin::new(&mut passed.body).poll_frame(cx) else {
            ready!(passed.idle.poll(cx));
            passed.meter.broken(unix_second());
            return Poll::Ready(Some(Err(BodyError::Stalled.into())));
        };
        passed.idle.reset();
        if let Some(Err(_)) = &next {
            passed.meter.broken(unix_second());
        }
        Poll::Ready(next.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Passed(passed) => passed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Passed(passed) => passed.body.size_hint(),
        }
    }
}
