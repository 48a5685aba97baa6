//! Runs the git command: in a clean environment, with a time-out and bounded output, leaving no process behind.
//! Knows nothing of repositories or protocols.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
};

use crate::error::{GitError, gist};
use swell_model::repository::CommitId;

/// Time for a command on the local disk.
pub const LOCAL_TIMEOUT: Duration = Duration::from_secs(120);
/// Time for a command that moves objects over the network, such as the first fetch of a large repository.
pub const NETWORK_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Time for a command to remove its locks after it was asked to end.
const GRACE: Duration = Duration::from_secs(5);
const STDOUT_BYTES_MAX: usize = 1 << 20;
const STDERR_BYTES_KEPT: usize = 16 << 10;

/// Variables that a git command inherits: where programs and keys are, and how to reach the network.
const PASSED_ON: &[&str] = &[
    "PATH",
    "HOME",
    "TMPDIR",
    "SSH_AUTH_SOCK",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "no_proxy",
    "NO_PROXY",
    "ALL_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
];

/// Configuration of every git command. Ownership is not checked: the folders belong to the product, and an address on the local disk
/// was given by somebody who may build it. Hooks of other repositories never run.
const CONFIG: &str = "\
[safe]
\tdirectory = *
[core]
\thooksPath = /dev/null
\tautocrlf = false
[protocol \"ext\"]
\tallow = never
[gc]
\tautoDetach = false
[maintenance]
\tautoDetach = false
[init]
\tdefaultBranch = main
[advice]
\tdetachedHead = false
";

/// The git command with the one configuration file that it may read.
#[derive(Debug, Clone)]
pub struct Git {
    config: PathBuf,
}

impl Git {
    /// Writes the configuration into `folder`, which is created.
    pub async fn with_config_in(folder: &Path) -> Result<Self, GitError> {
        tokio::fs::create_dir_all(folder).await.map_err(GitError::io("create", folder))?;
        let config = std::path::absolute(folder.join("gitconfig")).map_err(GitError::io("locate", folder))?;
        // Written to another file and renamed, as another process may be reading it.
        let new = folder.join(format!("gitconfig.{}", std::process::id()));
        tokio::fs::write(&new, CONFIG).await.map_err(GitError::io("write", &new))?;
        tokio::fs::rename(&new, &config).await.map_err(GitError::io("write", &config))?;
        Ok(Self { config })
    }

    /// A command with the clean environment, its own process group, and all three streams closed.
    pub fn raw(&self) -> Command {
        let mut command = Command::new("git");
        command.env_clear().envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", &self.config)
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("GIT_LITERAL_PATHSPECS", "1")
            .env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -oConnectTimeout=15")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    /// A command that runs to its end; `what` completes "… failed" in errors.
    pub fn command(&self, what: impl Into<String>) -> Invocation {
        let what = what.into();
        Invocation { command: self.raw(), what, timeout: LOCAL_TIMEOUT, stdout_bytes_max: STDOUT_BYTES_MAX, stdin: Vec::new() }
    }
}

/// Output and exit status of a command.
pub struct Output {
    pub success: bool,
    pub stdout: Vec<u8>,
    /// Last 16 KiB of standard error.
    pub stderr: String,
}

/// A git command under construction.
pub struct Invocation {
    command: Command,
    what: String,
    timeout: Duration,
    stdout_bytes_max: usize,
    stdin: Vec<u8>,
}

impl Invocation {
    /// Runs it in the repository at `git_dir`; to be called before [`Self::args`].
    pub fn in_repository(mut self, git_dir: &Path) -> Self {
        self.command.arg("--git-dir").arg(git_dir);
        self
    }

    /// Appends arguments, without a shell.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds environment variables.
    pub fn envs<K: AsRef<OsStr>, V: AsRef<OsStr>>(mut self, vars: impl IntoIterator<Item = (K, V)>) -> Self {
        self.command.envs(vars);
        self
    }

    /// Gives the bytes to its standard input, which is empty otherwise.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Sets the time after which it is killed and fails with [`GitError::TimedOut`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the most bytes of standard output that are read; more fails with [`GitError::TooLarge`].
    pub fn stdout_bytes_max(mut self, bytes: usize) -> Self {
        self.stdout_bytes_max = bytes;
        self
    }

    /// Runs to the end and returns the output, whatever the exit code.
    pub async fn run(self) -> Result<Output, GitError> {
        self.run_to(None).await
    }

    /// Runs to the end; an exit code other than 0 is an error.
    pub async fn run_ok(self) -> Result<Vec<u8>, GitError> {
        let what = self.what.clone();
        let output = self.run().await?;
        if output.success { Ok(output.stdout) } else { Err(GitError::Failed { what, detail: gist(&output.stderr) }) }
    }

    /// Like [`Self::run_ok`], with standard input from `input` or standard output to `output`.
    pub async fn run_with_files(mut self, input: Option<std::fs::File>, output: Option<std::fs::File>) -> Result<(), GitError> {
        let what = self.what.clone();
        if let Some(file) = output {
            self.command.stdout(file);
        }
        let output = self.run_to(Some(input)).await?;
        if output.success { Ok(()) } else { Err(GitError::Failed { what, detail: gist(&output.stderr) }) }
    }

    /// `files` says whether streams were given as files, and which one is standard input.
    async fn run_to(mut self, files: Option<Option<std::fs::File>>) -> Result<Output, GitError> {
        match files {
            None => {
                self.command.stdin(Stdio::piped()).stdout(Stdio::piped());
            }
            Some(Some(input)) => {
                self.command.stdin(input);
            }
            Some(None) => {
                self.command.stdin(Stdio::piped());
            }
        }
        let mut child = self.command.stderr(Stdio::piped()).spawn().map_err(GitError::Start)?;
        // The parent's copy of the files given above goes with the command.
        drop(self.command);
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut group = ProcessGroup::of(child);
        let feed = async {
            if let Some(mut stdin) = stdin
                && let Err(error) = stdin.write_all(&self.stdin).await
            {
                // Git closed its input early; its exit code says whether that is an error.
                tracing::debug!(%error, what = %self.what, "git read only a part of its input");
            }
        };
        let work = async {
            let ((), stdout, stderr) = tokio::join!(feed, read_bounded(stdout, self.stdout_bytes_max), read_tail(stderr));
            (stdout, stderr, group.wait().await)
        };
        let timed = tokio::time::timeout(self.timeout, work).await;
        let Ok((stdout, stderr, status)) = timed else {
            return Err(GitError::TimedOut { what: self.what, after: self.timeout });
        };
        let success = status.map_err(GitError::Start)?.success();
        match stdout {
            Some(stdout) => Ok(Output { success, stdout, stderr }),
            None => Err(GitError::TooLarge { what: self.what, bytes_max: self.stdout_bytes_max }),
        }
    }
}

/// Reads to the end; `None` when there is more than `bytes_max` (the writer then finds its pipe closed).
async fn read_bounded(stream: Option<impl AsyncRead + Unpin>, bytes_max: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let read = stream.take(bytes_max as u64 + 1).read_to_end(&mut bytes).await;
        if read.is_err() || bytes.len() > bytes_max {
            return None;
        }
    }
    Some(bytes)
}

/// Reads to the end and keeps the last part.
pub async fn read_tail(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    if let Some(mut stream) = stream {
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            kept.extend_from_slice(&buffer[..read]);
            if kept.len() > 2 * STDERR_BYTES_KEPT {
                kept.drain(..kept.len() - STDERR_BYTES_KEPT);
            }
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// A command and all its processes. When dropped before [`Self::wait`] has returned, they are asked to end, and killed after [`GRACE`]:
/// a git that is killed at once leaves its locks.
pub struct ProcessGroup(Option<Ending>);

/// The command is not reaped while this lives, so that its id, which is the group's, is not reused. Kills the group at the end.
struct Ending {
    group: Pid,
    child: Child,
}

impl ProcessGroup {
    /// The group of a child that was started by [`Git::raw`].
    pub fn of(child: Child) -> Self {
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Self(group.map(|group| Ending { group, child }))
    }

    /// Waits until the command has ended.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        match &mut self.0 {
            Some(ending) => ending.child.wait().await,
            None => Err(io::Error::other("it has no process id")),
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // Once reaped, its id may be reused.
        let Some(ending) = self.0.take().filter(|ending| ending.child.id().is_some()) else { return };
        if let Err(error) = killpg(ending.group, Signal::SIGTERM) {
            tracing::debug!(%error, group = %ending.group, "failed to ask a git command to end");
        }
        // Without a runtime nothing can wait, so it is killed at once.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(GRACE).await;
                drop(ending);
            });
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.child.id().is_some()
            && let Err(error) = killpg(self.group, Signal::SIGKILL)
        {
            tracing::debug!(%error, group = %self.group, "failed to kill a git command");
        }
    }
}

/// The refs of a local repository: full name and object.
pub async fn local_refs(git: &Git, git_dir: &Path) -> Result<Vec<(String, CommitId)>, GitError> {
    let listing = git
        .command("listing the refs")
        .in_repository(git_dir)
        .args(["for-each-ref", "--format=%(objectname) %(refname)"])
        .stdout_bytes_max(64 << 20)
        .run_ok()
        .await?;
    let listing = String::from_utf8_lossy(&listing);
    Ok(listing
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(id, name)| Some((name.to_owned(), id.parse().ok()?)))
        .collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    async fn until(what: &str, holds: impl Fn() -> bool) {
        let deadline = tokio::time::Instant::now() + 4 * GRACE;
        while !holds() {
            assert!(tokio::time::Instant::now() < deadline, "{what}");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn dropped_command_may_clean_up_and_is_killed_when_it_does_not_end() {
        let dir = tempfile::tempdir().unwrap();
        let there = |name: &str| dir.path().join(name).exists();
        let start = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).current_dir(dir.path()).process_group(0).kill_on_drop(true);
            ProcessGroup::of(command.spawn().unwrap())
        };
        let tidy = start("touch lock; trap 'rm lock; exit' TERM; touch tidy; while :; do sleep 0.05; done");
        until("it runs", || there("tidy")).await;
        drop(tidy);
        until("it removes its lock", || !there("lock")).await;

        // Its child holds the pipe as long as it lives.
        let (alive, held) = std::os::unix::net::UnixStream::pair().unwrap();
        alive.set_nonblocking(true).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; touch stubborn; sleep 1000; sleep 1000"]).current_dir(dir.path());
        command.process_group(0).kill_on_drop(true).stdin(std::os::fd::OwnedFd::from(held));
        let stubborn = ProcessGroup::of(command.spawn().unwrap());
        drop(command);
        until("it runs", || there("stubborn")).await;
        drop(stubborn);
        until("it is killed with its child", || matches!(std::io::Read::read(&mut &alive, &mut [0]), Ok(0))).await;
    }
}
