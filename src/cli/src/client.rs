//! The HTTP client of the API: sends requests with the token, the user's name and an idempotency key, and retries where that is
//! safe. Knows nothing of single resources.

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

/// How often a request is sent. With the delays between, the last try is about two seconds after the first: short for someone who
/// forgot to start a server, long enough for a change of leader.
const TRIES_MAX: u32 = 5;
const RETRY_DELAY_FIRST: Duration = Duration::from_millis(150);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// The page size that lists request.
const PAGE_ITEMS: usize = 500;

/// A client for one server, with one token.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
    user: Option<String>,
    timeout: Duration,
}

/// Why one try of a request failed.
struct RequestError {
    failure: Failure,
    retryable: bool,
    /// The server's `Retry-After`.
    retry_after: Duration,
}

impl Client {
    /// A client for the server at `addr`. `timeout` bounds each try of a request.
    pub fn new(addr: &str, token: Option<String>, user: Option<String>, timeout: Duration) -> Result<Self> {
        let base = Url::parse(addr).map_err(|error| Failure::usage(format!("`{addr}` is not a URL: {error}")))?;
        // A redirect or a proxy would receive the token.
        let http = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("swell/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::new(Exit::Failed, "client", format!("failed to set up the HTTP client: {error}")))?;
        Ok(Self { http, base, token, user, timeout })
    }

    /// The address of the server, without a slash at the end.
    pub fn addr(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Whether requests carry a token.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Sends a GET, with retries. `path` is a list of segments, which may contain any characters.
    pub async fn get(&self, path: &[&str], query: &[(&str, String)]) -> Result<Value> {
        self.tries(|| self.request(Method::GET, path, query).timeout(self.timeout)).await
    }

    /// Sends a GET once, for callers that poll.
    pub async fn get_once(&self, path: &[&str]) -> Result<Value> {
        let request = self.request(Method::GET, path, &[]).timeout(self.timeout);
        once(request, self.addr()).await.map_err(|error| error.failure)
    }

    /// Sends a POST, with retries under one idempotency key: the change is made once.
    pub async fn post(&self, path: &[&str], body: &Value) -> Result<Value> {
        let key = idempotency_key()?;
        let request = || self.request(Method::POST, path, &[]).timeout(self.timeout).header("idempotency-key", &key).json(body);
        self.tries(request).await
    }

    /// Sends a DELETE, with retries under one idempotency key.
    pub async fn delete(&self, path: &[&str]) -> Result<Value> {
        let key = idempotency_key()?;
        self.tries(|| self.request(Method::DELETE, path, &[]).timeout(self.timeout).header("idempotency-key", &key)).await
    }

    /// Posts bytes; `body` is called for each try.
    pub async fn upload(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        body: impl Fn() -> Result<reqwest::Body>,
    ) -> Result<Value> {
        let key = idempotency_key()?;
        let mut backoff = Backoff::new(RETRY_DELAY_FIRST, RETRY_DELAY_MAX);
        for attempt in 1.. {
            let request = self.request(Method::POST, path, query).header("idempotency-key", &key);
            let request = request.header("content-type", "application/octet-stream").body(body()?);
            match once(request, self.addr()).await {
                Err(error) if error.retryable && attempt < TRIES_MAX => {
                    tokio::time::sleep(backoff.wait().max(error.retry_after)).await;
                }
                done => return done.map_err(|error| error.failure),
            }
        }
        Ok(Value::Null)
    }

    /// The first `limit` items of a list, over as many pages as needed.
    pub async fn list(&self, path: &[&str], query: &[(&str, String)], limit: usize) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        while items.len() < limit {
            let mut query = query.to_vec();
            query.push(("limit", (limit - items.len()).min(PAGE_ITEMS).to_string()));
            if let Some(cursor) = cursor.take() {
                // Later pages of the event log continue from the cursor, no longer from `after`.
                query.retain(|(name, _)| *name != "after");
                query.push(("cursor", cursor));
            }
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

    /// Sends a GET whose answer is a stream. The time limit is for its head; the caller bounds the body.
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
        let mut backoff = Backoff::new(RETRY_DELAY_FIRST, RETRY_DELAY_MAX);
        let mut attempt = 1;
        loop {
            match once(request(), self.addr()).await {
                Err(error) if error.retryable && attempt < TRIES_MAX => {
                    tokio::time::sleep(backoff.wait().max(error.retry_after)).await;
                    attempt += 1;
                }
                done => return done.map_err(|error| error.failure),
            }
        }
    }
}

async fn once(request: RequestBuilder, addr: &str) -> Result<Value, RequestError> {
    let response = request.send().await.map_err(|error| unreachable(addr, &error))?;
    let status = response.status();
    let retry_after_secs = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = whole(response).await.map_err(|error| unreachable(addr, &error))?;
    if status.is_success() {
        let json = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body) };
        return json.map_err(|_| {
            let detail = format!("{addr} sent an answer that is not JSON");
            let failure =
                Failure::new(Exit::Failed, "not_json", detail).hint("check that --addr is the address of a Groundswell server");
            RequestError { failure, retryable: false, retry_after: Duration::ZERO }
        });
    }
    let retry_after = Duration::from_secs(retry_after_secs.unwrap_or(0).min(RETRY_DELAY_MAX.as_secs()));
    let retryable = matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
        && !is_final(&body);
    Err(RequestError { failure: problem::failure(status, &body), retryable, retry_after })
}

/// Whether the problem says that a retry cannot succeed.
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

/// Every change carries an idempotency key, so a request whose connection broke may be sent again.
fn unreachable(addr: &str, error: &reqwest::Error) -> RequestError {
    let cause = innermost(error);
    let detail =
        if error.is_timeout() { format!("{addr} did not answer in time") } else { format!("failed to reach {addr}: {cause}") };
    let failure = Failure::new(Exit::Unreachable, "unreachable", detail)
        .hint("start a server with `swell dev`, or name another with --addr or SWELL_ADDR; `swell doctor` checks the connection");
    RequestError { failure, retryable: !error.is_builder(), retry_after: Duration::ZERO }
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
        .map_err(|error| Failure::new(Exit::Failed, "random", format!("failed to read random bytes from the system: {error}")))?;
    Ok(hex::encode(bytes))
}
