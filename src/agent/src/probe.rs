//! Asks an instance once whether it works: over HTTP, over TCP, or by a command. Must not know how often, nor what follows.

use std::{
    net::{IpAddr, SocketAddr},
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, User},
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use super::{journal::Instance, launch::Launch};
use swell_model::pipeline_file::Probe;
use swell_sandbox::shim::DEFAULT_PATH;

/// Most bytes of an answer's body, or of a command's output, that are kept.
const ANSWER_BYTES_MAX: usize = 200;
/// How long the output of a command that has ended is still read.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What one instance is asked.
#[derive(Debug, Clone)]
pub(super) enum Question {
    /// Nothing: it works while it runs.
    Alive,
    /// Whether it takes a connection.
    Tcp(SocketAddr),
    /// What it answers to a GET.
    Http(SocketAddr, String),
    /// Whether a command exits with 0.
    Command(Box<Launch>),
}

impl Question {
    /// What `instance` is to be asked at `address`.
    pub fn of(instance: &Instance, address: IpAddr, launch: &Launch) -> Self {
        let at = |port| instance.ports.get(port).map(|port| SocketAddr::new(address, *port));
        match instance.settings.settings.health.probe() {
            Probe::Alive => Question::Alive,
            Probe::Tcp { port } => at(port).map_or(Question::Alive, Question::Tcp),
            Probe::Http { port, path } => at(port).map_or(Question::Alive, |at| Question::Http(at, path.to_owned())),
            Probe::Command(_) => Question::Command(Box::new(launch.clone())),
        }
    }

    /// Asks. The error says what was answered in its place.
    pub async fn ask(&self, patience: Duration) -> Result<(), String> {
        match self {
            Question::Alive => Ok(()),
            Question::Tcp(address) => match timeout(patience, TcpStream::connect(address)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(format!("connecting to {address}: {error}")),
                Err(_) => Err(format!("connecting to {address}: no answer within {patience:?}")),
            },
            Question::Http(address, path) => match timeout(patience, get(*address, path)).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("GET http://{address}{path}: no answer within {patience:?}")),
            },
            Question::Command(launch) => run(launch, patience).await,
        }
    }
}

async fn get(address: SocketAddr, path: &str) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("GET http://{address}{path}: {error}");
    let stream = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::USER_AGENT, "swell-agent")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    let answer = async {
        let mut response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let status = response.status();
        if (200..400).contains(&status.as_u16()) {
            return Ok(());
        }
        let mut body = Vec::new();
        while body.len() < ANSWER_BYTES_MAX
            && let Some(Ok(frame)) = response.frame().await
        {
            body.extend(frame.into_data().unwrap_or_default());
        }
        Err(format!("GET http://{address}{path} answered {status}: {}", brief(&body)))
    };
    let mut answer = std::pin::pin!(answer);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may be done before the answer was read from it.
        _ = &mut connection => answer.await,
    }
}

/// As the service runs: its user, environment and folder; without its control group, but within `patience`.
async fn run(launch: &Launch, patience: Duration) -> Result<(), String> {
    let [program, arguments @ ..] = &launch.probe[..] else { return Err("the probe's command is empty".to_owned()) };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .envs(&launch.env)
        .current_dir(&launch.folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let Some(name) = &launch.user {
        let name = name.clone();
        let user = tokio::task::spawn_blocking(move || User::from_name(&name)).await;
        let Ok(Ok(Some(user))) = user else { return Err(format!("{program}: this target has no user {:?}", launch.user)) };
        // As root, the standard library drops the supplementary groups with it.
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let no_new_privileges = || nix::sys::prctl::set_no_new_privs().map_err(std::io::Error::from);
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(no_new_privileges) };
    let child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let group = Group(child.id());
    let ended = timeout(patience, output_of(child)).await;
    drop(group);
    match ended {
        Ok(Ok((status, _))) if status.success() => Ok(()),
        Ok(Ok((status, output))) => Err(format!("{program}: {status}: {}", brief(&output))),
        Ok(Err(error)) => Err(format!("{program}: {error}")),
        Err(_) => Err(format!("{program}: not done within {patience:?}; killed")),
    }
}

/// Kills what the command left, when it is dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // Gone already, most of the time.
            killpg(Pid::from_raw(id), Signal::SIGKILL).ok();
        }
    }
}

/// Waits for the end; reads on past what is kept, so that the command does not block.
async fn output_of(mut child: Child) -> std::io::Result<(std::process::ExitStatus, Vec<u8>)> {
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let (mut kept, mut errors) = (Vec::new(), Vec::new());
    async fn drain(from: Option<impl tokio::io::AsyncRead + Unpin>, kept: &mut Vec<u8>) {
        let Some(mut from) = from else { return };
        let mut buffer = [0; 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            kept.extend(&buffer[..read.min(ANSWER_BYTES_MAX.saturating_sub(kept.len()))]);
        }
    }
    let reading = async { tokio::join!(drain(stdout.take(), &mut kept), drain(stderr.take(), &mut errors)) };
    // What it started may hold the pipes open: only the command itself is waited for.
    let status = {
        let mut reading = std::pin::pin!(reading);
        tokio::select! {
            status = child.wait() => {
                // What it printed last may still be in the pipes.
                timeout(LAST_WORDS, &mut reading).await.ok();
                status?
            }
            _ = &mut reading => child.wait().await?,
        }
    };
    kept.extend(errors);
    Ok((status, kept))
}

fn brief(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(ANSWER_BYTES_MAX)]).trim().to_owned()
}
