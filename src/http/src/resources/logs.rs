//! `/v1/builds/{id}/log`: a line a chunk (NDJSON): from where the attempt is at work, or from the content store once it ended.

use std::{io, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use hyper::{StatusCode, header::CONTENT_TYPE};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::builds;
use crate::{
    app::App,
    input::{At, Params},
    problem::Problem,
};
use swell_artifacts::log::{LogError, read_log};
use swell_model::{build::Attempt, digest::Digest, ids::BuildId, interfaces::LogChunk};

/// Without `follow`, a log at work is over when nothing more comes for this long.
const NOTHING_MORE: Duration = Duration::from_millis(500);

/// Which part of which log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Which attempt; the last unless given.
    attempt: Option<u32>,
    /// Whether to wait for more until the attempt ends.
    #[serde(default)]
    follow: bool,
    /// From which byte of the raw log: `end` of the last chunk that was read.
    #[serde(default)]
    start: u64,
}

/// A line of a log.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// Where it begins in the attempt's raw log, in bytes.
    pub start: u64,
    /// Where the next one begins.
    pub end: u64,
    /// When it was written.
    pub at: u64,
    /// Whether it came on standard error.
    pub stderr: bool,
    /// In which phase.
    pub phase: String,
    /// What was written, as text.
    pub text: String,
}

impl From<LogChunk> for LogLine {
    fn from(chunk: LogChunk) -> Self {
        let LogChunk { start, end, at, stderr, phase, text } = chunk;
        Self { start, end, at: at.0, stderr, phase, text }
    }
}

/// The log of an attempt, a JSON object a line. It can be resumed with `start`.
#[utoipa::path(
    get, path = "/v1/builds/{id}/log", tag = "builds",
    params(("id" = String, Path), LogQuery),
    responses((status = OK, body = LogLine, content_type = "application/x-ndjson")),
)]
pub async fn log(State(app): State<App>, At(id): At<BuildId>, Params(query): Params<LogQuery>) -> Result<Response, Problem> {
    let asked = query.attempt;
    let attempt = app.read(move |view| attempt(builds::of(view, id)?.attempts, id, asked)).await?;
    if let Some(digest) = attempt.log {
        return Ok(ndjson(kept(&app, digest, query.start).await?));
    }
    if attempt.end.is_some() {
        return Err(no_log(format!("the log of {id}'s attempt {} was not kept", attempt.number), "run it again"));
    }
    let Some(live) = app.logs.follow(id, attempt.number, query.start) else {
        let detail = format!("this server does not hold the log of {id}'s attempt {} yet", attempt.number);
        let hint = format!("ask again in a moment, or ask another server: it runs on runner {}", attempt.runner);
        return Err(no_log(detail, &hint).retryable());
    };
    let lines = live.map(|chunk| line(&LogLine::from(chunk)));
    if query.follow {
        return Ok(ndjson(lines));
    }
    let until_silence = tokio_stream::StreamExt::timeout(lines, NOTHING_MORE).take_while(|line| std::future::ready(line.is_ok()));
    Ok(ndjson(until_silence.filter_map(|line| std::future::ready(line.ok()))))
}

fn attempt(mut attempts: Vec<Attempt>, id: BuildId, asked: Option<u32>) -> Result<Attempt, Problem> {
    let found = match asked {
        Some(number) => attempts.into_iter().find(|attempt| attempt.number == number),
        None => attempts.pop(),
    };
    found.ok_or_else(|| match asked {
        Some(number) => no_log(format!("{id} has no attempt {number}"), "`swell status` shows its attempts"),
        None => no_log(format!("{id} has not been given to a runner yet"), "ask again when it is at work").retryable(),
    })
}

fn no_log(detail: String, hint: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no_log", detail, hint)
}

fn ndjson(lines: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Response {
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn line(line: &LogLine) -> io::Result<Bytes> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    Ok(text.into())
}

/// The kept log from byte `start` on.
async fn kept(app: &App, digest: Digest, start: u64) -> Result<impl Stream<Item = io::Result<Bytes>> + use<>, Problem> {
    let chunks = read_log(Arc::clone(&app.content), digest, start).await.map_err(|error| match error {
        LogError::Store(error) => Problem::from(error),
        error => no_log(error.to_string(), "run the build again"),
    })?;
    Ok(chunks.map(|chunk| chunk.map_err(io::Error::other).and_then(|chunk| line(&LogLine::from(chunk)))))
}
