//! Calling a CGI program (RFC 3875) as an HTTP handler, with bodies streamed both ways through bounded buffers.
//! Knows nothing of git but that it may work long in silence.

use std::{
    fmt::Display,
    io,
    pin::pin,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Frame},
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::OwnedSemaphorePermit,
};

use super::{
    command::{ProcessGroup, read_tail},
    error::{GitError, gist},
};

/// The body of an answer. Dropping it ends the program.
pub type GitBody = UnsyncBoxBody<Bytes, io::Error>;

/// How long the other side may be silent before the exchange is given up. Git sends progress every few seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
const HEADER_BYTES_MAX: u64 = 16 << 10;
const CHUNK_BYTES: usize = 64 << 10;

/// Sets the variables that describe `request`. `path_info` is the part of the path that the program is to see.
pub(super) fn describe<B>(command: &mut Command, request: &Request<B>, path_info: &str) {
    command
        .env("GATEWAY_INTERFACE", "CGI/1.1")
        .env("SERVER_PROTOCOL", "HTTP/1.1")
        .env("REQUEST_METHOD", request.method().as_str())
        .env("PATH_INFO", path_info)
        .env("QUERY_STRING", request.uri().query().unwrap_or_default());
    // What git's back end reads; other headers are none of its business.
    let passed_on = [
        ("content-type", "CONTENT_TYPE"),
        ("content-length", "CONTENT_LENGTH"),
        ("content-encoding", "HTTP_CONTENT_ENCODING"),
        ("git-protocol", "GIT_PROTOCOL"),
        ("accept-language", "HTTP_ACCEPT_LANGUAGE"),
    ];
    for (header, variable) in passed_on {
        if let Some(value) = request.headers().get(header).and_then(|value| value.to_str().ok()) {
            command.env(variable, value);
        }
    }
}

/// A short answer in plain text, which git shows to its user.
pub(super) fn plain(status: StatusCode, text: impl Into<String>) -> Response<GitBody> {
    let body = Full::new(Bytes::from(text.into() + "\n")).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Runs the program over the request's body. `running` is given back when it has ended; `failed` is set when it ended badly.
pub(super) async fn call<B>(
    mut command: Command,
    body: B,
    running: OwnedSemaphorePermit,
    failed: Arc<AtomicBool>,
) -> Result<Response<GitBody>, GitError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Display + Send,
{
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(GitError::Start)?;
    drop(command);
    let group = ProcessGroup::of(&child);
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(GitError::Start(io::Error::other("no pipes")));
    };
    let stderr = tokio::spawn(read_tail(child.stderr.take()));
    let feeding = tokio::spawn(feed(body, stdin));
    let mut stdout = BufReader::with_capacity(CHUNK_BYTES, stdout);
    let head = match tokio::time::timeout(IDLE_TIMEOUT, read_head(&mut stdout)).await {
        Ok(Ok(head)) => head,
        Ok(Err(detail)) => {
            drop(group);
            failed.store(true, Ordering::Relaxed);
            let said = stderr.await.unwrap_or_default();
            return Err(GitError::Failed { what: "answering".to_owned(), detail: format!("{detail}; {}", gist(&said)) });
        }
        Err(_) => return Err(GitError::TimedOut { what: "answering".to_owned(), after: IDLE_TIMEOUT }),
    };
    let running = Running { stdout, child, group, stderr, feeding: AbortOnDrop(feeding), failed, _permit: running };
    let body = StreamBody::new(stream::unfold(Some(running), next_chunk)).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    for (name, value) in head.headers {
        // The length of what is streamed is hyper's to tell.
        if name != CONTENT_LENGTH {
            response.headers_mut().append(name, value);
        }
    }
    Ok(response)
}

/// Copies the request's body to the program, a chunk at a time. When the client is cut off the program sees an early end.
async fn feed<B>(body: B, mut stdin: ChildStdin)
where
    B: Body<Data = Bytes> + Send,
    B::Error: Display,
{
    let mut body = pin!(body);
    loop {
        let frame = match tokio::time::timeout(IDLE_TIMEOUT, body.frame()).await {
            Ok(None) => return,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, "a request to git broke off");
                return;
            }
            Err(_) => {
                tracing::debug!("a request to git fell silent");
                return;
            }
        };
        let Ok(data) = frame.into_data() else { continue };
        let written = tokio::time::timeout(IDLE_TIMEOUT, stdin.write_all(&data)).await;
        if !matches!(written, Ok(Ok(()))) {
            // The program has read enough, for instance because it refuses; its answer says why.
            return;
        }
    }
}

struct Head {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// Reads `Name: value` lines up to the empty one; `Status: 404 Not Found` sets the status.
async fn read_head(stdout: &mut BufReader<ChildStdout>) -> Result<Head, String> {
    let mut head = Head { status: StatusCode::OK, headers: Vec::new() };
    let mut left = stdout.take(HEADER_BYTES_MAX);
    loop {
        let mut line = String::new();
        left.read_line(&mut line).await.map_err(|error| error.to_string())?;
        if !line.ends_with('\n') {
            return Err("the program ended before its headers did".to_owned());
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(head);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| format!("`{line}` is no header"))?;
        if name.eq_ignore_ascii_case("status") {
            let code = value.trim().get(..3).and_then(|code| code.parse().ok());
            head.status = code.ok_or_else(|| format!("`{line}` is no status"))?;
        } else {
            let name = name.parse().map_err(|_| format!("`{line}` is no header"))?;
            let value = value.trim().parse().map_err(|_| format!("`{line}` is no header"))?;
            head.headers.push((name, value));
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The program while its output is read. Dropped half-way, everything that it started is killed.
struct Running {
    stdout: BufReader<ChildStdout>,
    child: Child,
    group: ProcessGroup,
    stderr: tokio::task::JoinHandle<String>,
    feeding: AbortOnDrop,
    failed: Arc<AtomicBool>,
    _permit: OwnedSemaphorePermit,
}

async fn next_chunk(running: Option<Running>) -> Option<(Result<Frame<Bytes>, io::Error>, Option<Running>)> {
    let mut running = running?;
    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
    match tokio::time::timeout(IDLE_TIMEOUT, running.stdout.read_buf(&mut chunk)).await {
        Ok(Ok(0)) => running.end().await.map(|error| (Err(error), None)),
        Ok(Ok(_)) => Some((Ok(Frame::data(chunk.freeze())), Some(running))),
        Ok(Err(error)) => Some((Err(error), None)),
        Err(_) => Some((Err(io::Error::new(io::ErrorKind::TimedOut, "git fell silent")), None)),
    }
}

impl Running {
    /// After the last byte: a program that failed must not look as if it had finished.
    async fn end(mut self) -> Option<io::Error> {
        let status = match tokio::time::timeout(IDLE_TIMEOUT, self.child.wait()).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return Some(error),
            Err(_) => return Some(io::Error::new(io::ErrorKind::TimedOut, "git closed its output and does not end")),
        };
        self.group.ended();
        drop(self.feeding);
        let said = self.stderr.await.unwrap_or_default();
        if status.success() {
            return None;
        }
        self.failed.store(true, Ordering::Relaxed);
        tracing::info!(%status, said = %gist(&said), "git ended an exchange with an error");
        Some(io::Error::other("git failed"))
    }
}
