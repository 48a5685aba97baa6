//! `swell shim DIR`: the process that owns one container or one instance, single-threaded and outliving whoever started it.
//! Must not know of builds, releases or servers: everything it needs is in `DIR/spec.json`.
//!
//! What is in `DIR` (all readable by its owner only):
//!
//! | file | meaning |
//! |---|---|
//! | `spec.json` | what to run: [`ShimSpec`] |
//! | `shim.lock` | held by the shim as long as it lives: no two run in one folder |
//! | `shim.pid`, `child.pid` | process id and start time ([`ProcessRef`]) of the shim, before anything else is made, and of the command |
//! | `spool`, `spool.1` | the output, see `runner::spool` |
//! | `exit.json` | how it ended: [`ExitRecord`], written once, atomically; until then `exit.tmp` keeps its room on the disk |
//! | `shim.log` | the shim's own diagnostics, at most 64 KiB |
//! | `cgroup.claimed` | the control group is ours: made by this shim, or about to be |
//! | `bundle/`, `state/` | the container while it exists |
//!
//! Signals to the shim: SIGTERM or SIGINT stop politely (`stop` in the spec), SIGUSR1 kills at once; both end with an exit
//! record. SIGKILL leaves things behind that [`reap`] removes.
//!
//! Crash points, in the order in which they are passed: `shim::before_pid`, `shim::before_spool`, `shim::before_child`,
//! `shim::after_create` (containers: created, not started), `shim::after_child` (recorded), `shim::after_start`,
//! `shim::on_stop` (stop signal received), `shim::before_kill` (the command ended, leftovers not yet killed),
//! `shim::before_exit_record`, `shim::after_exit_record`, `shim::before_cleanup`, `shim::after_cleanup`.

mod bare;
mod child;
mod container;
mod oci;
mod process;
mod reap;
mod record;
mod spec;
mod supervise;

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::{prctl, signal},
    unistd,
};

use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
};

pub use self::{
    child::DEFAULT_PATH,
    reap::{ReapError, reap},
    record::{
        CHILD_PID_FILE, EXIT_FILE, ExitRecord, Failure, Outcome, ProcessRef, RecordError, SHIM_PID_FILE, boot_id, read_exit,
        read_process, write_spec,
    },
    spec::{Bind, ContainerSpec, Isolation, ProcessSpec, SPEC_FILE, ShimSpec, SpecError, StopPolicy},
};
use swell_system::error_chain::chain;

/// What the shim writes to its standard output once `shim.pid` is recorded; whoever started it waits for this line.
pub const READY_LINE: &str = "ready\n";
/// Bound of `shim.log` in bytes.
const LOG_BYTES_MAX: usize = 64 * 1024;

/// Runs the shim in `dir` to its end. Call it before any thread exists. The exit code is 0 when an exit record was written.
pub fn main(dir: &Path) -> ExitCode {
    match prepare(dir) {
        Ok((dir, _lock)) => match run(&dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(error = %chain(&error), "shim failed");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            // Nobody may listen any more.
            writeln!(io::stdout(), "{}", chain(&error)).ok();
            ExitCode::FAILURE
        }
    }
}

/// Why a shim could not even begin; afterwards everything is told in the exit record.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The folder is missing or unreadable.
    #[error("opening shim folder {}", .0.display())]
    Folder(PathBuf, #[source] io::Error),
    /// Another shim lives here.
    #[error("another shim runs in {}; adopt it instead of starting a second", .0.display())]
    Locked(PathBuf),
    /// A shim ran here before.
    #[error("{} was used before; reap it and start in a fresh folder", .0.display())]
    Used(PathBuf),
    /// Detaching from the parent failed.
    #[error("detaching from the parent process")]
    Detach(#[source] nix::Error),
    /// The record could not be written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Everything up to the line `ready`: from then on the parent may die.
fn prepare(dir: &Path) -> Result<(PathBuf, Flock<File>), ShimError> {
    let dir = dir.canonicalize().map_err(|source| ShimError::Folder(dir.to_owned(), source))?;
    let folder_error = |source| ShimError::Folder(dir.clone(), source);
    let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join("shim.lock")).map_err(folder_error)?;
    let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|_| ShimError::Locked(dir.clone()))?;
    if dir.join(SHIM_PID_FILE).exists() || dir.join(EXIT_FILE).exists() {
        return Err(ShimError::Used(dir));
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join("shim.log")).map_err(folder_error)?;
    log_to(log);
    // EPERM: started by a shell as the leader of a group already.
    unistd::setsid()
        .or_else(|errno| if errno == nix::Error::EPERM { Ok(unistd::getpid()) } else { Err(errno) })
        .map_err(ShimError::Detach)?;
    // Executed as /proc/self/exe, it would be listed as `exe`.
    prctl::set_name(c"swell-shim").map_err(ShimError::Detach)?;
    prctl::set_child_subreaper(true).map_err(ShimError::Detach)?;
    unistd::chdir("/").map_err(ShimError::Detach)?;
    supervise::block_signals().map_err(ShimError::Detach)?;
    record::reserve(&dir)?;
    swell_system::crash::point("shim::before_pid");
    record::write_process(&dir.join(SHIM_PID_FILE), unistd::getpid())?;
    io::stdout().write_all(READY_LINE.as_bytes()).and_then(|()| io::stdout().flush()).ok();
    detach_stdio().map_err(ShimError::Detach)?;
    Ok((dir, lock))
}

/// From here on every failure ends in the exit record.
fn run(dir: &Path) -> Result<(), RecordError> {
    let record = match ShimSpec::read(dir) {
        Ok(spec) => supervise::run(dir, &spec),
        Err(error) => ExitRecord::not_started(Failure {
            what: "read what to run".to_owned(),
            why: chain(&error),
            way_out: "this is a defect of the program that wrote spec.json; keep the folder and report it".to_owned(),
        }),
    };
    swell_system::crash::point("shim::before_exit_record");
    let written = record.write(dir);
    swell_system::crash::point("shim::after_exit_record");
    // Whether or not anybody will learn how it ended.
    if let Err(error) = reap::clean(dir) {
        tracing::error!(error = %chain(&error), "failed to remove what is left, reaping tries again");
    }
    swell_system::crash::point("shim::after_cleanup");
    written
}

fn detach_stdio() -> nix::Result<()> {
    let null = nix::fcntl::open("/dev/null", nix::fcntl::OFlag::O_RDWR, nix::sys::stat::Mode::empty())?;
    unistd::dup2_stdin(&null)?;
    unistd::dup2_stdout(&null)?;
    unistd::dup2_stderr(&null)?;
    Ok(())
}

/// Before a command is executed in a forked child: no signal blocked, none ignored. Rust programs ignore SIGPIPE, and an
/// ignored or blocked signal is inherited through exec.
fn reset_signals() -> nix::Result<()> {
    // SAFETY: restores the default disposition, installs no handler.
    unsafe { signal::signal(signal::Signal::SIGPIPE, signal::SigHandler::SigDfl) }?;
    signal::SigSet::empty().thread_set_mask()
}

/// Warnings of ours and of libcontainer go to the log, and the log has an end.
fn log_to(file: File) {
    let writer = std::sync::Mutex::new(BoundedLog { file, left: LOG_BYTES_MAX });
    // libcgroups warns of each controller that this machine lacks, libcontainer of each call that this kernel lacks.
    let wanted = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("libcgroups", LevelFilter::ERROR)
        .with_target("libcontainer::seccomp", LevelFilter::ERROR);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false).with_filter(wanted);
    let subscriber = tracing_subscriber::registry().with(layer);
    // Set already: main was called twice in one process, as only a test would.
    tracing::subscriber::set_global_default(subscriber).ok();
}

struct BoundedLog {
    file: File,
    left: usize,
}

impl Write for BoundedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() <= self.left {
            self.left -= bytes.len();
            self.file.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
