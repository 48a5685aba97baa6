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
    process::{ChildStdin, ChildStdout, Command},
    sync::OwnedSemaphorePermit,
    time::error::Elapsed,
};

use swell_git::{
    command::{ProcessGroup, read_tail},
    error::{GitError, gist},
};

/// The body of an answer. Dropping it ends the program.
pub type GitBody = UnsyncBoxBody<Bytes, io::Error>;

/// How long nothing may move in either direction before the exchange is given up. Git says nothing while a pack comes in, and
/// sends progress every few seconds once it has it.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
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

/// Runs the program over the request's body, until nothing moves for `idle`. `running` is given back when it has ended; `failed` is
/// set when it ended badly.
pub(super) async fn call<B>(
    mut command: Command,
    body: B,
    running: OwnedSemaphorePermit,
    failed: Arc<AtomicBool>,
    idle: Duration,
) -> Result<Response<GitBody>, GitError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Display + Send,
{
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(GitError::Start)?;
    drop(command);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let group = ProcessGroup::of(child);
    let (Some(stdin), Some(stdout)) = (stdin, stdout) else {
        return Err(GitError::Start(io::Error::other("no pipes")));
    };
    let stderr = tokio::spawn(read_tail(stderr));
    let life = Life { idle, fed: Arc::default() };
    let feeding = AbortOnDrop(tokio::spawn(feed(body, stdin, life.clone())));
    let mut stdout = BufReader::with_capacity(CHUNK_BYTES, stdout);
    let head = match life.span(read_head(&mut stdout)).await {
        Ok(Ok(head)) => head,
        Ok(Err(detail)) => {
            drop(group);
            failed.store(true, Ordering::Relaxed);
            let said = stderr.await.unwrap_or_default();
            return Err(GitError::Failed { what: "answering".to_owned(), detail: format!("{detail}; {}", gist(&said)) });
        }
        Err(_) => return Err(GitError::TimedOut { what: "answering".to_owned(), after: idle }),
    };
    let running = Running { stdout, group, stderr, feeding, life, failed, _permit: running };
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

/// How long an exchange lives on: while anything moves, in either direction.
#[derive(Clone)]
struct Life {
    idle: Duration,
    /// Set when the program took something in.
    fed: Arc<AtomicBool>,
}

impl Life {
    /// Waits for `work`, which speaks for the program's output; an error when neither it nor the input moved for `idle` or twice that.
    async fn span<T>(&self, work: impl Future<Output = T>) -> Result<T, Elapsed> {
        let mut work = pin!(work);
        loop {
            match tokio::time::timeout(self.idle, work.as_mut()).await {
                Err(_) if self.fed.swap(false, Ordering::Relaxed) => {}
                ended => return ended,
            }
        }
    }
}

/// Copies the request's body to the program, a chunk at a time. When the client is cut off the program sees an early end.
async fn feed<B>(body: B, mut stdin: ChildStdin, life: Life)
where
    B: Body<Data = Bytes> + Send,
    B::Error: Display,
{
    let mut body = pin!(body);
    loop {
        let frame = match tokio::time::timeout(life.idle, body.frame()).await {
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
        let written = tokio::time::timeout(life.idle, stdin.write_all(&data)).await;
        if !matches!(written, Ok(Ok(()))) {
            // The program has read enough, for instance because it refuses; its answer says why.
            return;
        }
        life.fed.store(true, Ordering::Relaxed);
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

/// The program while its output is read. Dropped half-way, everything that it started is ended.
struct Running {
    stdout: BufReader<ChildStdout>,
    group: ProcessGroup,
    stderr: tokio::task::JoinHandle<String>,
    feeding: AbortOnDrop,
    life: Life,
    failed: Arc<AtomicBool>,
    _permit: OwnedSemaphorePermit,
}

async fn next_chunk(running: Option<Running>) -> Option<(Result<Frame<Bytes>, io::Error>, Option<Running>)> {
    let mut running = running?;
    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
    match running.life.span(running.stdout.read_buf(&mut chunk)).await {
        Ok(Ok(0)) => running.end().await.map(|error| (Err(error), None)),
        Ok(Ok(_)) => Some((Ok(Frame::data(chunk.freeze())), Some(running))),
        Ok(Err(error)) => Some((Err(error), None)),
        Err(_) => Some((Err(io::Error::new(io::ErrorKind::TimedOut, "git fell silent")), None)),
    }
}

impl Running {
    /// After the last byte: a program that failed must not look as if it had finished.
    async fn end(mut self) -> Option<io::Error> {
        let status = match tokio::time::timeout(self.life.idle, self.group.wait()).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return Some(error),
            Err(_) => return Some(io::Error::new(io::ErrorKind::TimedOut, "git closed its output and does not end")),
        };
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use super::*;

    const IDLE: Duration = Duration::from_secs(1);

    async fn run(script: &str, upload: impl Body<Data = Bytes, Error = io::Error> + Send + 'static) -> Result<Bytes, io::Error> {
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0).kill_on_drop(true);
        let turns = Arc::new(tokio::sync::Semaphore::new(1));
        let response = call(command, upload, turns.acquire_owned().await.unwrap(), Arc::default(), IDLE).await.unwrap();
        response.into_body().collect().await.map(|body| body.to_bytes())
    }

    /// Like receive-pack: not a word until all of a long upload is there.
    #[tokio::test]
    async fn upload_may_take_longer_than_the_idle_limit() {
        let begun = Instant::now();
        let ticks = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(IDLE / 20));
        let lasts = futures::StreamExt::take_while(ticks, move |_| std::future::ready(begun.elapsed() < 4 * IDLE));
        let upload = StreamBody::new(futures::StreamExt::map(lasts, |_| Ok(Frame::data(Bytes::from_static(b"more ")))));
        let said = run("printf 'Content-Type: text/plain\\n\\n'; cat >/dev/null; echo received", upload).await;
        assert_eq!(said.unwrap(), "received\n");
    }

    #[tokio::test]
    async fn idle_exchange_times_out() {
        let upload = StreamBody::new(stream::pending());
        let said = run("printf 'Content-Type: text/plain\\n\\n'; exec sleep 1000", upload).await;
        assert_eq!(said.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
