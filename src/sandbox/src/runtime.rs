//! The asynchronous side of the shim, for runner and agent: start one, find it again after a restart, stop it, wait for it.
//! Knows a shim only by its folder; must not know what is run or why.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt, Interest, unix::AsyncFd},
    process::Command,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::shim::{
    ExitRecord, ProcessRef, READY_LINE, ReapError, RecordError, SHIM_PID_FILE, ShimSpec, SpecError, read_exit, read_process,
    reap, write_spec,
};
use swell_model::units::ByteSize;
use swell_system::disk_space::{self, Room};

/// How long a shim may take until it has recorded itself.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// Where the kernel has no pidfd: how often to look.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Why a shim could not be started, found or ended.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The spec is not one that can be run.
    #[error("this cannot be run")]
    Spec(#[from] SpecError),
    /// A record could not be written or read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The folder could not be made.
    #[error("creating shim folder {}", .0.display())]
    Folder(PathBuf, #[source] io::Error),
    /// Something runs or ran in the folder.
    #[error("{} was used before; adopt what runs there, or clear it and start in a fresh folder", .0.display())]
    Used(PathBuf),
    /// The program could not be executed.
    #[error("starting {} as a shim", .0.display())]
    Spawn(PathBuf, #[source] io::Error),
    /// It ended, or hung, before it had recorded itself. Nothing was run.
    #[error("the shim in {} did not begin: {why}", dir.display())]
    NotReady {
        /// The shim's folder.
        dir: PathBuf,
        /// The shim's message, or that it hung.
        why: String,
    },
    /// It could not be signaled.
    #[error("signaling shim {0}")]
    Signal(i32, #[source] io::Error),
    /// It could not be waited for.
    #[error("waiting for shim {0}")]
    Wait(i32, #[source] io::Error),
    /// What a killed shim left could not be removed.
    #[error(transparent)]
    Reap(#[from] ReapError),
    /// The process is ending.
    #[error("the program is shutting down")]
    ShuttingDown,
}

/// What is known of a shim's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShimStatus {
    /// No shim has recorded itself here: nothing was run.
    NotStarted,
    /// The shim lives; the process is its own, not the command's.
    Running(ProcessRef),
    /// It ended and said how. It may still be removing what it made.
    Exited(ExitRecord),
    /// It was killed, or the machine restarted, before it could say. What ran may have had effects; `reap` it.
    Vanished,
}

/// With less than this free, whatever goes wrong is put down to the disk.
const DISK_FULL_BELOW: u64 = ByteSize(16 << 20).0;

/// Whether the disk of `folder` is full: then a command may have failed, and its shim vanished, for that alone. What is kept free for
/// others counts as free: a command writes there too. Blocking.
pub fn is_disk_full(folder: &Path) -> bool {
    disk_space::room(folder).is_ok_and(is_full)
}

fn is_full(room: Room) -> bool {
    room.free < DISK_FULL_BELOW
}

/// Reads what is known of the shim in `dir`.
pub async fn status(dir: &Path) -> Result<ShimStatus, RuntimeError> {
    let dir = dir.to_owned();
    blocking(move || status_now(&dir)).await
}

fn status_now(dir: &Path) -> Result<ShimStatus, RuntimeError> {
    if let Some(record) = read_exit(dir)? {
        return Ok(ShimStatus::Exited(record));
    }
    let Some(shim) = read_process(dir, SHIM_PID_FILE)? else { return Ok(ShimStatus::NotStarted) };
    if shim.is_alive() {
        return Ok(ShimStatus::Running(shim));
    }
    // It may have ended properly since the first look.
    Ok(read_exit(dir)?.map_or(ShimStatus::Vanished, ShimStatus::Exited))
}

/// Finds a shim that still runs in `dir`, whoever started it; `None` where none does ([`status`] says why).
pub async fn adopt(dir: &Path) -> Result<Option<ShimHandle>, RuntimeError> {
    Ok(match status(dir).await? {
        ShimStatus::Running(shim) => Some(ShimHandle { dir: dir.to_owned(), shim }),
        _ => None,
    })
}

/// Ends whatever runs in `dir` at once and removes what it made. Afterwards the folder may be removed.
pub async fn clear(dir: &Path) -> Result<(), RuntimeError> {
    let dir = dir.to_owned();
    blocking(move || Ok(reap(&dir)?)).await
}

/// Starts shims from one executable.
#[derive(Debug, Clone)]
pub struct ShimRuntime {
    executable: PathBuf,
}

impl Default for ShimRuntime {
    /// The running program itself, also when its file has been replaced meanwhile.
    fn default() -> Self {
        Self { executable: "/proc/self/exe".into() }
    }
}

impl ShimRuntime {
    /// Another program that knows `shim DIR`: for tests, whose own executable does not.
    pub fn with_executable(executable: impl Into<PathBuf>) -> Self {
        Self { executable: executable.into() }
    }

    /// Runs `spec` under a new shim in `dir`, which is created, and must not have been used before. Returns once the shim has
    /// recorded itself; from then on it outlives this process. A command that cannot be started is told by its exit record.
    pub async fn start(&self, dir: &Path, spec: &ShimSpec) -> Result<ShimHandle, RuntimeError> {
        spec.check()?;
        let (folder, written) = (dir.to_owned(), spec.clone());
        blocking(move || {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.map_err(|source| RuntimeError::Folder(folder.clone(), source))?;
            // Not after its spec was replaced, from which it is to be reaped.
            match status_now(&folder)? {
                ShimStatus::NotStarted => Ok(write_spec(&folder, &written)?),
                _ => Err(RuntimeError::Used(folder)),
            }
        })
        .await?;
        swell_system::crash::point("runtime::before_shim");
        let mut child = Command::new(&self.executable)
            .arg0("swell")
            .arg("shim")
            .arg(dir)
            .env_clear()
            .envs(swell_system::crash::inherited_env())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| RuntimeError::Spawn(self.executable.clone(), source))?;
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            // It closes its end as soon as it is ready; were it stuck instead, its lock would still keep others out.
            match timeout(READY_TIMEOUT, stdout.take(4096).read_to_string(&mut said)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => said = error.to_string(),
                Err(_) => said = format!("no answer within {READY_TIMEOUT:?}"),
            }
        }
        // So that it does not stay a zombie.
        tokio::spawn(async move {
            if let Err(error) = child.wait().await {
                tracing::warn!(%error, "failed to wait for a shim");
            }
        });
        swell_system::crash::point("runtime::after_shim");
        let not_ready = |why: &str| RuntimeError::NotReady { dir: dir.to_owned(), why: why.trim().to_owned() };
        if said != READY_LINE {
            return Err(not_ready(if said.is_empty() { "it ended without a word" } else { &said }));
        }
        let folder = dir.to_owned();
        match blocking(move || Ok(read_process(&folder, SHIM_PID_FILE)?)).await? {
            Some(shim) => Ok(ShimHandle { dir: dir.to_owned(), shim }),
            None => Err(not_ready("its folder was removed")),
        }
    }
}

/// A shim that was running when this was made. Dropping it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShimHandle {
    dir: PathBuf,
    shim: ProcessRef,
}

impl ShimHandle {
    /// Returns the shim's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Asks the command to end as its spec says; [`ShimHandle::wait`] for it. A shim that ended already is fine.
    pub fn stop(&self) -> Result<(), RuntimeError> {
        self.signal(Signal::SIGTERM)
    }

    /// Kills the command and everything it started at once; the shim still records how it ended.
    pub fn kill(&self) -> Result<(), RuntimeError> {
        self.signal(Signal::SIGUSR1)
    }

    fn signal(&self, signal: Signal) -> Result<(), RuntimeError> {
        let failed = |error| RuntimeError::Signal(self.shim.pid, error);
        let pidfd = match self.pidfd() {
            Ok(Some(pidfd)) => pidfd,
            Ok(None) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return signal_by_id(&self.shim, signal).map_err(failed),
            Err(error) => return Err(failed(error)),
        };
        // SAFETY: plain numbers and a null pointer, as pidfd_send_signal(2) documents.
        let sent = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as i32, std::ptr::null::<libc::siginfo_t>(), 0)
        };
        match io::Error::last_os_error() {
            _ if sent == 0 => Ok(()),
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(failed(error)),
        }
    }

    /// A descriptor of exactly this process; `None` when it is gone.
    fn pidfd(&self) -> io::Result<Option<OwnedFd>> {
        // SAFETY: plain numbers, as pidfd_open(2) documents.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.shim.pid, 0) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error) };
        }
        // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // Looked at after opening: from here on the descriptor and the record name the same process.
        Ok(self.shim.is_alive().then_some(fd))
    }

    /// Until the shim has ended; then removes what it left if it was killed. `None`: it vanished without a record.
    pub async fn wait(&self) -> Result<Option<ExitRecord>, RuntimeError> {
        let failed = |error| RuntimeError::Wait(self.shim.pid, error);
        match self.pidfd() {
            Ok(Some(pidfd)) => {
                // SAFETY: an owned descriptor stays open and the same until it is dropped, with the `AsyncFd`.
                let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
                let pidfd = pidfd.map_err(|error| failed(error.into_parts().1))?;
                // A pidfd is readable once the process has ended.
                let _ended = pidfd.readable().await.map_err(failed)?;
            }
            Ok(None) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                while self.shim.is_alive() {
                    sleep(LOOK_INTERVAL).await;
                }
            }
            Err(error) => return Err(failed(error)),
        }
        let dir = self.dir.clone();
        blocking(move || {
            reap(&dir)?;
            Ok(read_exit(&dir)?)
        })
        .await
    }
}

/// Where the kernel has no pidfd (before Linux 5.3). The id could pass to another process between the look and the signal, but ids are
/// given out in turn: all others come first.
fn signal_by_id(process: &ProcessRef, signal: Signal) -> io::Result<()> {
    if !process.is_alive() {
        return Ok(());
    }
    match kill(Pid::from_raw(process.pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static) -> Result<T, RuntimeError> {
    spawn_blocking(work).await.unwrap_or(Err(RuntimeError::ShuttingDown))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn disk_is_full_when_commands_cannot_write_not_when_reserve_begins() {
        let room = |free: ByteSize| Room { capacity: 1 << 40, free: free.0, available: free.0.saturating_sub(256 << 20) };
        assert!(!is_full(room(ByteSize(270 << 20))));
        assert!(is_full(room(ByteSize(15 << 20))));
    }

    #[test]
    fn process_is_signaled_exactly_without_pidfds() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = ProcessRef::of(Pid::from_raw(child.id() as i32)).unwrap();
        let earlier = ProcessRef { start_ticks: process.start_ticks - 1, ..process.clone() };
        signal_by_id(&earlier, Signal::SIGKILL).unwrap();
        assert!(process.is_alive());
        signal_by_id(&process, Signal::SIGTERM).unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(Signal::SIGTERM as i32));
        signal_by_id(&process, Signal::SIGTERM).unwrap();
    }
}
