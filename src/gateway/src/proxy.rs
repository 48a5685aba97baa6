//! Forwards one request: finds its service, chooses an instance, sends it, retries. Knows nothing of listeners.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, Version,
    body::{Body, Incoming},
    header::{self, HeaderValue},
    http::uri::{Parts, PathAndQuery, Scheme},
    upgrade::OnUpgrade,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    balance::Candidate,
    body::{BodyError, ClientBody, RequestBody, ResponseBody},
    config::Limits,
    endpoint::{InFlight, now_ms},
    headers::{self, Host},
    measure::{Meters, unix_second},
    problem::problem,
    retry::{self, BodyLeft, Failure},
    table::{LiveService, LiveTable, TableHandle},
    upgrade,
};
use swell_model::{rollout::assignment::Generation, routing::table::ServiceKey};

/// Forwards requests; one for the whole gateway.
#[derive(Debug)]
pub struct Proxy {
    table: TableHandle,
    limits: Limits,
    trust_forwarded: bool,
    meters: Arc<Meters>,
    http1: Client<HttpConnector, RequestBody>,
    /// For gRPC, which needs HTTP/2 end to end: with prior knowledge, as there is no TLS to negotiate it.
    http2: Client<HttpConnector, RequestBody>,
    tunnels: TaskTracker,
    cut_tunnels: CancellationToken,
}

/// A client's connection, counted while it or its tunnel is open.
#[derive(Debug)]
pub struct Inbound {
    peer: SocketAddr,
    pinned: Option<Arc<ServiceKey>>,
    meters: Arc<Meters>,
    _permit: OwnedSemaphorePermit,
}

impl Inbound {
    /// A connection from `peer` to a listener for `pinned`, or for any service. Holds `permit` until it ends.
    pub fn new(peer: SocketAddr, pinned: Option<Arc<ServiceKey>>, meters: Arc<Meters>, permit: OwnedSemaphorePermit) -> Self {
        meters.connections.fetch_add(1, Relaxed);
        Self { peer, pinned, meters, _permit: permit }
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.meters.connections.fetch_sub(1, Relaxed);
    }
}

/// A request that is ready to be sent to an instance.
struct Outgoing {
    method: Method,
    path: PathAndQuery,
    headers: HeaderMap,
    body: OutgoingBody,
    grpc: bool,
    upgrade: Option<Upgrade>,
}

/// A client's request to change the protocol.
struct Upgrade {
    protocol: HeaderValue,
    client_side: OnUpgrade,
    inbound: Arc<Inbound>,
}

enum OutgoingBody {
    Empty,
    Buffered(Bytes),
    Streamed(Arc<ClientBody>),
}

impl OutgoingBody {
    fn for_attempt(&self) -> RequestBody {
        match self {
            Self::Empty => RequestBody::Empty,
            Self::Buffered(bytes) => RequestBody::Buffered(Some(bytes.clone())),
            Self::Streamed(source) => RequestBody::streamed(Arc::clone(source)),
        }
    }

    fn left(&self) -> BodyLeft {
        match self {
            Self::Streamed(source) if !source.is_untouched() => BodyLeft::Spent,
            _ => BodyLeft::Whole,
        }
    }

    fn failure(&self) -> Option<BodyError> {
        if let Self::Streamed(source) = self { source.failure() } else { None }
    }

    fn moved_ms(&self) -> u64 {
        if let Self::Streamed(source) = self { source.moved_ms() } else { 0 }
    }
}

type Answer = Response<ResponseBody>;

/// An answer of the gateway itself.
struct Refusal {
    status: StatusCode,
    detail: Cow<'static, str>,
}

impl Refusal {
    fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, detail: detail.into() }
    }
}

impl Proxy {
    /// A proxy that routes by `table` and counts in `meters`.
    pub fn new(table: TableHandle, limits: Limits, trust_forwarded: bool, meters: Arc<Meters>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(limits.connect_timeout.as_duration()));
        connector.set_keepalive(Some(limits.idle()));
        let client = |http2_only: bool| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .timer(TokioTimer::new())
                .pool_idle_timeout(limits.upstream_idle_timeout.as_duration())
                .pool_max_idle_per_host(limits.upstream_idle_max)
                .http1_max_headers(256)
                .http2_only(http2_only)
                .http2_adaptive_window(true)
                .set_host(false)
                .build(connector.clone())
        };
        let (http1, http2) = (client(false), client(true));
        let (tunnels, cut_tunnels) = (TaskTracker::new(), CancellationToken::new());
        Self { table, limits, trust_forwarded, meters, http1, http2, tunnels, cut_tunnels }
    }

    /// Waits for open tunnels until `deadline`, then cuts them.
    pub async fn close_tunnels(&self, deadline: Instant) {
        self.tunnels.close();
        if tokio::time::timeout_at(deadline, self.tunnels.wait()).await.is_err() {
            tracing::warn!(tunnels = self.tunnels.len(), "drain timed out, cutting tunnels");
            self.cut_tunnels.cancel();
            self.tunnels.wait().await;
        }
    }

    /// Answers one request of a client.
    pub async fn answer(&self, request: Request<Incoming>, inbound: &Arc<Inbound>) -> Answer {
        let version = request.version();
        let answer = match self.outgoing(request, inbound).await {
            Ok((service, outgoing)) => self.forward(service, outgoing).await,
            Err(refusal) => Err(refusal),
        };
        answer.unwrap_or_else(|refusal| {
            self.meters.refused(refusal.status.as_u16());
            let mut answer = problem(refusal.status, &refusal.detail);
            if refusal.status == StatusCode::BAD_REQUEST && version != Version::HTTP_2 {
                // What follows on the connection may not be a request of its own.
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            answer
        })
    }

    /// Finds the service and turns the client's request into one for an instance.
    async fn outgoing(
        &self,
        mut request: Request<Incoming>,
        inbound: &Arc<Inbound>,
    ) -> Result<(Arc<LiveService>, Outgoing), Refusal> {
        let host = headers::host_of(&request)
            .map_err(|what| Refusal::new(StatusCode::BAD_REQUEST, format!("the request has {what}")))?;
        if request.method() == Method::CONNECT {
            return Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "CONNECT is not supported: the gateway forwards requests to services only",
            ));
        }
        let service = self.service(host.as_ref(), inbound.pinned.as_deref())?;
        let content_length = request.body().size_hint().exact();
        if content_length.is_some_and(|length| length > self.limits.request_body_max.0) {
            return Err(self.too_long());
        }

        let upgrade = headers::upgrade_wanted(&request).map(|protocol| Upgrade {
            protocol,
            client_side: hyper::upgrade::on(&mut request),
            inbound: Arc::clone(inbound),
        });
        let (mut parts, body) = request.into_parts();
        let grpc = parts.version == Version::HTTP_2
            && parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        headers::prepare_request(&mut parts.headers, parts.version, inbound.peer, host.as_ref(), self.trust_forwarded);
        if let Some(upgrade) = &upgrade {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(header::UPGRADE, upgrade.protocol.clone());
        }
        let path = parts.uri.into_parts().path_and_query.unwrap_or(PathAndQuery::from_static("/"));
        let body = self.body(&parts.method, body, content_length).await?;
        Ok((service, Outgoing { method: parts.method, path, headers: parts.headers, body, grpc, upgrade }))
    }

    fn service(&self, host: Option<&Host>, pinned: Option<&ServiceKey>) -> Result<Arc<LiveService>, Refusal> {
        let table = self.table.load();
        let found = match (pinned, host) {
            (Some(key), _) => table.service(key),
            (None, Some(host)) => table.service_for_host(&host.name),
            (None, None) => None,
        };
        if let Some(service) = found {
            return Ok(Arc::clone(service));
        }
        if table.source.generation == Generation::default() {
            let detail = "this gateway has no routes yet, it waits for a server; try again in a second";
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, detail));
        }
        Err(match pinned {
            Some(key) => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("the service {key} is not deployed; deploy it")),
            None => Refusal::new(StatusCode::NOT_FOUND, unknown_host(host.map_or("", |host| host.name.as_str()), &table)),
        })
    }

    async fn body(&self, method: &Method, body: Incoming, length: Option<u64>) -> Result<OutgoingBody, Refusal> {
        if body.is_end_stream() {
            return Ok(OutgoingBody::Empty);
        }
        let is_buffered = method.is_idempotent() && length.is_some_and(|length| length <= self.limits.replay_body_max.0);
        if !is_buffered {
            return Ok(OutgoingBody::Streamed(ClientBody::new(body, self.limits.request_body_max.0, self.limits.idle())));
        }
        match tokio::time::timeout(self.limits.idle(), body.collect()).await {
            Ok(Ok(collected)) => Ok(OutgoingBody::Buffered(collected.to_bytes())),
            Ok(Err(_)) => Err(Refusal::new(StatusCode::BAD_REQUEST, BodyError::BrokenOff.to_string())),
            Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, BodyError::Stalled.to_string())),
        }
    }

    fn too_long(&self) -> Refusal {
        let most = self.limits.request_body_max;
        let detail = format!("the body is longer than {most}, the most that this gateway accepts; raise `request_body_max`");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    /// Sends a request to one instance after another until one answers or another attempt is not safe.
    async fn forward(&self, service: Arc<LiveService>, mut outgoing: Outgoing) -> Result<Answer, Refusal> {
        let began = Instant::now();
        let mut tried: Vec<SocketAddr> = Vec::new();
        service.budget.earn();
        loop {
            // By the table in force now: it may have changed while a body was read, or since the last attempt.
            let Some((candidate, in_flight)) = self.table.begin(&service.key, &tried) else {
                let detail = format!("no instance of {} is serving; try again in a second", service.key);
                return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, detail));
            };
            let failure = match self.send(&candidate, in_flight, &mut outgoing, began).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let address = candidate.endpoint.address;
            let release = &candidate.release;
            tracing::debug!(service = %service.key, %release, %address, ?failure, attempt = tried.len() + 1, "attempt failed");
            tried.push(address);
            let again = tried.len() < self.limits.attempts_max
                && retry::may_retry(failure, &outgoing.method, outgoing.body.left())
                && service.budget.spend(now_ms());
            if !again {
                return Err(self.gave_up(failure, &service, &outgoing));
            }
            self.meters.retries.fetch_add(1, Relaxed);
        }
    }

    /// Makes one attempt.
    async fn send(
        &self,
        candidate: &Candidate,
        in_flight: InFlight,
        outgoing: &mut Outgoing,
        began: Instant,
    ) -> Result<Answer, Failure> {
        let mut parts = Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(candidate.endpoint.authority.clone());
        parts.path_and_query = Some(outgoing.path.clone());
        let mut request = Request::new(outgoing.body.for_attempt());
        *request.method_mut() = outgoing.method.clone();
        // `OPTIONS *` has no absolute form with a path, so it goes to the instance's root.
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        *request.headers_mut() = outgoing.headers.clone();
        // A request of HTTP/1.0 may lack a host, one of HTTP/1.1 may not.
        if let (false, Ok(host)) = (outgoing.headers.contains_key(header::HOST), candidate.endpoint.authority.as_str().parse()) {
            request.headers_mut().insert(header::HOST, host);
        }
        *request.version_mut() = if outgoing.grpc { Version::HTTP_2 } else { Version::HTTP_11 };
        let client = if outgoing.grpc { &self.http2 } else { &self.http1 };

        let answer = self.answer_head(client.request(request), &outgoing.body).await;
        let mut response = match answer {
            Ok(response) => response,
            Err(failure) => {
                if failure != Failure::Client {
                    self.count_failure(candidate, failure);
                }
                return Err(failure);
            }
        };
        let status = response.status();
        candidate.meter.answered(unix_second(), status.as_u16(), began.elapsed());
        if matches!(status.as_u16(), 502..=504) {
            candidate.endpoint.failed(now_ms());
        } else {
            candidate.endpoint.succeeded();
        }

        let protocol = response.headers().get(header::UPGRADE).cloned();
        headers::strip_hop_by_hop(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let meter = Arc::clone(&candidate.meter);
            return Ok(response.map(|body| ResponseBody::passed(body, self.limits.idle(), meter, in_flight)));
        }
        let Some(Upgrade { client_side, inbound, .. }) = outgoing.upgrade.take() else {
            return Err(Failure::Garbled);
        };
        let instance_side = hyper::upgrade::on(&mut response);
        let tunnel = upgrade::tunnel(client_side, instance_side, self.limits.idle(), (in_flight, inbound));
        self.tunnels.spawn(self.cut_tunnels.clone().run_until_cancelled_owned(tunnel));
        let fields = response.headers_mut();
        fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            fields.insert(header::UPGRADE, protocol);
        }
        Ok(response.map(|_| ResponseBody::Own(None)))
    }

    /// Counts an attempt without an answer against its release, even if another instance answers in the end: retries must not hide
    /// a release whose instances fail.
    fn count_failure(&self, candidate: &Candidate, failure: Failure) {
        candidate.meter.unanswered(unix_second());
        if candidate.endpoint.failed(now_ms()) {
            let address = candidate.endpoint.address;
            tracing::warn!(release = %candidate.release, %address, ?failure, "instance ejected");
        }
    }

    /// Waits for the head of the answer, `response_timeout` from the last byte of the request that was sent, so that a long upload
    /// does not time out.
    async fn answer_head(
        &self,
        answer: hyper_util::client::legacy::ResponseFuture,
        body: &OutgoingBody,
    ) -> Result<Response<Incoming>, Failure> {
        tokio::pin!(answer);
        let limit = self.limits.response_timeout.as_duration();
        let began_ms = now_ms();
        let mut wait = limit;
        loop {
            match tokio::time::timeout(wait, &mut answer).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(_)) if body.failure().is_some() => return Err(Failure::Client),
                Ok(Err(error)) if error.is_connect() => return Err(Failure::NotConnected),
                Ok(Err(error)) if is_garbled(&error) => return Err(Failure::Garbled),
                Ok(Err(_)) => return Err(Failure::Reset),
                Err(_) => {
                    let due_ms = body.moved_ms().max(began_ms) + limit.as_millis() as u64;
                    match due_ms.checked_sub(now_ms()).filter(|left_ms| *left_ms > 0) {
                        Some(left_ms) => wait = Duration::from_millis(left_ms),
                        None => return Err(Failure::TimedOut),
                    }
                }
            }
        }
    }

    fn gave_up(&self, failure: Failure, service: &LiveService, outgoing: &Outgoing) -> Refusal {
        let key = &service.key;
        match (failure, outgoing.body.failure()) {
            (Failure::Client, Some(BodyError::TooLong)) => self.too_long(),
            (Failure::Client, Some(BodyError::Stalled)) => {
                Refusal::new(StatusCode::REQUEST_TIMEOUT, BodyError::Stalled.to_string())
            }
            (Failure::Client, _) => Refusal::new(StatusCode::BAD_REQUEST, BodyError::BrokenOff.to_string()),
            (Failure::NotConnected, _) => {
                let detail = format!("no instance of {key} could be reached and nothing was sent; try again in a second");
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, detail)
            }
            (Failure::TimedOut, _) => {
                let limit = self.limits.response_timeout;
                Refusal::new(StatusCode::GATEWAY_TIMEOUT, format!("the instance of {key} did not answer within {limit}"))
            }
            (Failure::Reset, _) => {
                let detail =
                    format!("the instance of {key} closed the connection before answering; the request may have had an effect");
                Refusal::new(StatusCode::BAD_GATEWAY, detail)
            }
            (Failure::Garbled, _) => {
                Refusal::new(StatusCode::BAD_GATEWAY, format!("the instance of {key} answered with invalid HTTP"))
            }
        }
    }
}

/// How many services an answer to an unknown host names.
const KNOWN_SERVICES_MAX: usize = 10;

fn unknown_host(host: &str, table: &LiveTable) -> String {
    let mut known: Vec<String> = table.source.services().keys().take(KNOWN_SERVICES_MAX).map(ServiceKey::host_prefix).collect();
    if table.source.services().len() > known.len() {
        known.push("…".to_owned());
    }
    let known = if known.is_empty() { "none, nothing is deployed".to_owned() } else { known.join(", ") };
    format!("no service has the host {host}; known: {known}")
}

fn is_garbled(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<hyper::Error>())
        .any(hyper::Error::is_parse)
}
