//! `/v1/builds/{id}/log`: the log of an attempt as NDJSON, from its runner while it runs, from the content store afterwards.

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

/// Without `follow`, the log of a running attempt ends after this long without output.
const SILENCE_MAX: Duration = Duration::from_millis(500);

/// Part of a log to return.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Number of the attempt. Default: the last.
    attempt: Option<u32>,
    /// Waits for more output until the attempt ends.
    #[serde(default)]
    follow: bool,
    /// Byte of the raw log to start from: `end` of the last line received.
    #[serde(default)]
    start: u64,
}

/// A piece of a log.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// Offset in the attempt's raw log, in bytes.
    pub start: u64,
    /// Offset of the next piece, in bytes.
    pub end: u64,
    /// Time of the output, in milliseconds since 1970.
    pub at: u64,
    /// Whether it was written to standard error.
    pub stderr: bool,
    /// Phase of the build.
    pub phase: String,
    /// Output of the phase, in the order in which it was written.
    pub text: String,
}

impl From<LogChunk> for LogLine {
    fn from(chunk: LogChunk) -> Self {
        let LogChunk { start, end, at, stderr, phase, text } = chunk;
        Self { start, end, at: at.0, stderr, phase, text }
    }
}

/// Streams the log of an attempt, a JSON object per line. Resume with `start`.
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
        return Err(no_log(format!("the log of {id}, attempt {}, was not stored", attempt.number), "run the build again"));
    }
    let Some(live) = app.logs.follow(id, attempt.number, query.start) else {
        let detail = format!("this server does not have the log of {id}, attempt {}, yet", attempt.number);
        let hint = format!("retry in a moment, or use the server of runner {}", attempt.runner);
        return Err(no_log(detail, &hint).retryable());
    };
    let lines = live.map(|chunk| line(&LogLine::from(chunk)));
    if query.follow {
        return Ok(ndjson(lines));
    }
    let until_silence = tokio_stream::StreamExt::timeout(lines, SILENCE_MAX).take_while(|line| std::future::ready(line.is_ok()));
    Ok(ndjson(until_silence.filter_map(|line| std::future::ready(line.ok()))))
}

fn attempt(mut attempts: Vec<Attempt>, id: BuildId, asked: Option<u32>) -> Result<Attempt, Problem> {
    let found = match asked {
        Some(number) => attempts.into_iter().find(|attempt| attempt.number == number),
        None => attempts.pop(),
    };
    found.ok_or_else(|| match asked {
        Some(number) => no_log(format!("{id} has no attempt {number}"), "`swell status` lists its attempts"),
        None => no_log(format!("{id} has not started yet"), "retry when it is assigned to a runner").retryable(),
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

/// The stored log from byte `start` on.
async fn kept(app: &App, digest: Digest, start: u64) -> Result<impl Stream<Item = io::Result<Bytes>> + use<>, Problem> {
    let chunks = read_log(Arc::clone(&app.content), digest, start).await.map_err(|error| match error {
        LogError::Store(error) => Problem::from(error),
        error => no_log(error.to_string(), "run the build again"),
    })?;
    Ok(chunks.map(|chunk| chunk.map_err(io::Error::other).and_then(|chunk| line(&LogLine::from(chunk)))))
}
