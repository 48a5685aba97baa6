//! The API over HTTP: requests with the token, the user's name and an idempotency key, tried again where that is safe.
//! Knows nothing of what is asked.

use std::time::Duration;

use reqwest::{
    Method, RequestBuilder, Response, StatusCode, Url,
    header::{HeaderMap, RETRY_AFTER},
    redirect,
};
use serde_json::Value;

use super::{
    failure::{Exit, Failure, Result},
    problem,
    retry::Backoff,
};

/// How often a request is sent before it is given up. With the waits between them it takes about two seconds, so that nobody
/// who forgot to start a server waits long, and a change of leader is sat out.
const TRIES_MAX: u32 = 5;
const WAIT_FIRST: Duration = Duration::from_millis(150);
const WAIT_LONGEST: Duration = Duration::from_secs(2);
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A larger answer is not read.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How many items a page of a list has.
const PAGE_ITEMS: usize = 500;

/// Where the API is, and as whom.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
    user: Option<String>,
    timeout: Duration,
}

/// Why one try failed, and whether another is worth it.
struct ActorFailure {
    failure: Failure,
    again: bool,
    not_before: Duration,
}

impl Client {
    /// For the server at `addr`.
    pub fn new(addr: &str, token: Option<String>, user: Option<String>, timeout: Duration) -> Result<Self> {
        let base = Url::parse(addr).map_err(|error| Failure::usage(format!("`{addr}` is no address: {error}")))?;
        // A redirect would take the token elsewhere, and a proxy is not where an on-prem server is.
        let http = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("swell/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::new(Exit::Failed, "client", format!("cannot set up HTTP: {error}")))?;
        Ok(Self { http, base, token, user, timeout })
    }

    /// The server's address.
    pub fn addr(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Whether there is a token to send.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Reads, trying again where that may help. `path` is given by its segments, which may hold any characters.
    pub async fn get(&self, path: &[&str], query: &[(&str, String)]) -> Result<Value> {
        self.tries(|| self.request(Method::GET, path, query).timeout(self.timeout)).await
    }

    /// Reads once: for callers that come back anyway.
    pub async fn get_once(&self, path: &[&str]) -> Result<Value> {
        let request = self.request(Method::GET, path, &[]).timeout(self.timeout);
        once(request, self.addr()).await.map_err(|trouble| trouble.failure)
    }

    /// Asks for a change, once for all tries: they carry the same key.
    pub async fn post(&self, path: &[&str], body: &Value) -> Result<Value> {
        let key = idempotency_key()?;
        let request = || self.request(Method::POST, path, &[]).timeout(self.timeout).header("idempotency-key", &key).json(body);
        self.tries(request).await
    }

    /// Asks for something to be forgotten.
    pub async fn delete(&self, path: &[&str]) -> Result<Value> {
        let key = idempotency_key()?;
        self.tries(|| self.request(Method::DELETE, path, &[]).timeout(self.timeout).header("idempotency-key", &key)).await
    }

    /// Sends bytes, which `body` gives anew for each try.
    pub async fn upload(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        body: impl Fn() -> Result<reqwest::Body>,
    ) -> Result<Value> {
        let key = idempotency_key()?;
        let mut backoff = Backoff::new(WAIT_FIRST, WAIT_LONGEST);
        for attempt in 1.. {
            let request = self.request(Method::POST, path, query).header("idempotency-key", &key);
            let request = request.header("content-type", "application/octet-stream").body(body()?);
            match once(request, self.addr()).await {
                Err(trouble) if trouble.again && attempt < TRIES_MAX => {
                    tokio::time::sleep(backoff.wait().max(trouble.not_before)).await;
                }
                done => return done.map_err(|trouble| trouble.failure),
            }
        }
        Ok(Value::Null)
    }

    /// The items of a list, at most `limit`, over as many pages as it takes.
    pub async fn list(&self, path: &[&str], query: &[(&str, String)], limit: usize) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        while items.len() < limit {
            let mut query = query.to_vec();
            query.push(("limit", (limit - items.len()).min(PAGE_ITEMS).to_string()));
            query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            let page = self.get(path, &query).await?;
            items.extend(page.get("items").and_then(Value::as_array).into_iter().flatten().cloned());
            match page.get("next").and_then(Value::as_str) {
                Some(next) => cursor = Some(next.to_owned()),
                None => break,
            }
        }
        items.truncate(limit);
        Ok(items)
    }

    /// Begins an answer without end: its head must come in time, its body is the caller's to watch.
    pub async fn stream(&self, path: &[&str], query: &[(&str, String)], headers: HeaderMap) -> Result<Response> {
        let sent = self.request(Method::GET, path, query).headers(headers).send();
        let answered = tokio::time::timeout(self.timeout, sent).await.map_err(|_| no_answer(self.addr(), self.timeout))?;
        let response = answered.map_err(|error| unreachable(self.addr(), &error).failure)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = tokio::time::timeout(self.timeout, whole(response)).await.map_err(|_| no_answer(self.addr(), self.timeout))?;
        Err(problem::failure(status, &body.unwrap_or_default()))
    }

    fn request(&self, method: Method, path: &[&str], query: &[(&str, String)]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(user) = &self.user {
            request = request.header("x-swell-user", user);
        }
        request
    }

    async fn tries(&self, request: impl Fn() -> RequestBuilder) -> Result<Value> {
        let mut backoff = Backoff::new(WAIT_FIRST, WAIT_LONGEST);
        let mut attempt = 1;
        loop {
            match once(request(), self.addr()).await {
                Err(trouble) if trouble.again && attempt < TRIES_MAX => {
                    tokio::time::sleep(backoff.wait().max(trouble.not_before)).await;
                    attempt += 1;
                }
                done => return done.map_err(|trouble| trouble.failure),
            }
        }
    }
}

async fn once(request: RequestBuilder, addr: &str) -> Result<Value, ActorFailure> {
    let response = request.send().await.map_err(|error| unreachable(addr, &error))?;
    let status = response.status();
    let asked_wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = whole(response).await.map_err(|error| unreachable(addr, &error))?;
    if status.is_success() {
        let json = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body) };
        return json.map_err(|_| {
            let what = format!("{addr} answered something that is not JSON");
            let failure = Failure::new(Exit::Failed, "not_json", what).hint("look whether `--addr` is a Groundswell server");
            ActorFailure { failure, again: false, not_before: Duration::ZERO }
        });
    }
    let not_before = Duration::from_secs(asked_wait.unwrap_or(0).min(WAIT_LONGEST.as_secs()));
    let again = matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
        && !is_final(&body);
    Err(ActorFailure { failure: problem::failure(status, &body), again, not_before })
}

/// Whether a problem says itself that the same request cannot succeed later.
fn is_final(body: &[u8]) -> bool {
    let problem: Option<Value> = serde_json::from_slice(body).ok();
    problem.is_some_and(|problem| problem.get("retryable") == Some(&Value::Bool(false)))
}

async fn whole(mut response: Response) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            break;
        }
    }
    Ok(body)
}

/// Every change carries a key or changes nothing twice by itself, so whatever broke off may be sent again.
fn unreachable(addr: &str, error: &reqwest::Error) -> ActorFailure {
    let cause = innermost(error);
    let what =
        if error.is_timeout() { format!("{addr} does not answer in time") } else { format!("cannot reach {addr}: {cause}") };
    let failure = Failure::new(Exit::Unreachable, "unreachable", what)
        .hint("start a server (`swell dev`), or name another with --addr or SWELL_ADDR; `swell doctor` looks closer");
    ActorFailure { failure, again: !error.is_builder(), not_before: Duration::ZERO }
}

fn no_answer(addr: &str, within: Duration) -> Failure {
    Failure::new(Exit::Unreachable, "unreachable", format!("{addr} did not answer within {} s", within.as_secs()))
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn idempotency_key() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::new(Exit::Failed, "random", format!("the system has no random bytes: {error}")))?;
    Ok(hex::encode(bytes))
}
