//! The shim's loop: start the command, keep its output, obey signals and deadlines, kill what is left, measure. One thread,
//! poll(2) on a signalfd and two pipes. Must not know how the command is isolated beyond which control group it is in.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{UsageWho, getrusage},
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, read},
};

use super::{
    bare, chain,
    child::Child,
    container, process, reap,
    record::{ExitRecord, Failure, Outcome, now},
    spec::{Isolation, ShimSpec},
};
use crate::{
    cgroup::{Cgroup, CgroupError, Usage},
    spool::{FRAME_BYTES_MAX, SpoolWriter, Stream},
};
use swell_model::units::{Millis, Timestamp};
use swell_system::files::failed;

const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait, once all is killed, for the end of the pipes: only an escaped process could hold them open.
const DRAIN_PATIENCE: Duration = Duration::from_millis(200);

/// From now on signals wait for the loop, whatever the shim is doing.
pub(super) fn block_signals() -> nix::Result<()> {
    handled_signals().thread_block()
}

fn handled_signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect()
}

/// Runs what `spec` asks to its end. Whatever happens is in the record.
pub(super) fn run(dir: &Path, spec: &ShimSpec) -> ExitRecord {
    try_run(dir, spec).unwrap_or_else(ExitRecord::not_started)
}

fn try_run(dir: &Path, spec: &ShimSpec) -> Result<ExitRecord, Failure> {
    swell_system::crash::point("shim::before_spool");
    let spool = SpoolWriter::create(dir, spec.output).map_err(|error| Failure {
        what: format!("create the output file in {}", dir.display()),
        why: error.to_string(),
        way_out: "check that the disk is not full".to_owned(),
    })?;
    let signals = SignalFd::with_flags(&handled_signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(system)?;
    let cgroup = match spec.kind {
        Isolation::Bare => None,
        Isolation::Container(_) | Isolation::Process(_) => Some(create_cgroup(dir, spec).map_err(|error| Failure {
            what: format!("create the control group {}", spec.cgroup),
            why: chain(&error),
            way_out: "`swell doctor` says what this machine allows".to_owned(),
        })?),
    };
    swell_system::crash::point("shim::before_child");
    let started_at = now();
    let started = Instant::now();
    let child = match (&spec.kind, &cgroup) {
        (Isolation::Container(container), Some(_)) => container::start(dir, spec, container)?,
        (Isolation::Process(process), Some(cgroup)) => process::start(dir, spec, process, cgroup)?,
        (_, _) => bare::start(dir, spec)?,
    };
    swell_system::crash::point("shim::after_start");
    let mut supervisor = Supervisor::new(spec, cgroup, spool, child, started)?;
    let ended = supervisor.watch(&signals);
    swell_system::crash::point("shim::before_kill");
    supervisor.kill_all();
    supervisor.drain();
    Ok(supervisor.record(ended, started_at, started.elapsed()))
}

fn create_cgroup(dir: &Path, spec: &ShimSpec) -> Result<Cgroup, CgroupError> {
    let cgroup = Cgroup::new(&spec.cgroup)?;
    // Somebody else's: refused, and because it is not claimed, not killed at the end either.
    let strangers = cgroup.pids().len();
    if strangers > 0 {
        return Err(CgroupError::InUse { path: spec.cgroup.clone(), count: strangers });
    }
    let claim = dir.join(reap::CLAIM_FILE);
    std::fs::write(&claim, "").map_err(failed("claim the control group in", &claim))?;
    cgroup.create()?;
    cgroup.limit(&spec.limits)?;
    Ok(cgroup)
}

fn system(errno: Errno) -> Failure {
    Failure {
        what: "prepare to watch the command".to_owned(),
        why: errno.to_string(),
        way_out: "check this machine's limits on open files and memory".to_owned(),
    }
}

struct Supervisor<'a> {
    spec: &'a ShimSpec,
    cgroup: Option<Cgroup>,
    spool: SpoolWriter,
    pid: Pid,
    pipes: Vec<(OwnedFd, Stream)>,
    kill_at: Option<Instant>,
    time_limit_at: Option<Instant>,
    /// How the command ended, from when it was reaped until `watch` returns it.
    ended: Option<Outcome>,
    reaped: bool,
    timed_out: bool,
    stopped: bool,
}

impl<'a> Supervisor<'a> {
    fn new(
        spec: &'a ShimSpec,
        cgroup: Option<Cgroup>,
        spool: SpoolWriter,
        child: Child,
        started: Instant,
    ) -> Result<Self, Failure> {
        let pipes = vec![(child.stdout, Stream::Stdout), (child.stderr, Stream::Stderr)];
        for (pipe, _) in &pipes {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(system)?;
        }
        Ok(Self {
            spec,
            cgroup,
            spool,
            pid: child.pid,
            pipes,
            kill_at: None,
            time_limit_at: spec.time_limit.and_then(|limit| started.checked_add(limit.as_duration())),
            ended: None,
            reaped: false,
            timed_out: false,
            stopped: false,
        })
    }

    /// Until the command itself has ended.
    fn watch(&mut self, signals: &SignalFd) -> Outcome {
        loop {
            self.collect_ended();
            if let Some(outcome) = self.ended.take() {
                return outcome;
            }
            let now = Instant::now();
            if !self.timed_out && self.time_limit_at.is_some_and(|at| at <= now) {
                self.timed_out = true;
                let limit = self.spec.time_limit.unwrap_or_default();
                self.spool.note(super::record::now(), &format!("time limit of {limit} reached; everything is killed\n"));
                self.kill_at = Some(now);
            }
            if self.kill_at.is_some_and(|at| at <= now) {
                self.kill_all();
                // Again, should the command itself hang in the kernel for now.
                self.kill_at = now.checked_add(KILL_PATIENCE);
                continue;
            }
            let limit = if self.timed_out { None } else { self.time_limit_at };
            let wake_at = [self.kill_at, limit].into_iter().flatten().min();
            self.wait_for_event(signals, wake_at.map(|at| at.saturating_duration_since(now)));
            self.obey(signals);
        }
    }

    fn wait_for_event(&mut self, signals: &SignalFd, wait: Option<Duration>) {
        // Rounded up, or the loop would spin through the last millisecond.
        let wait = wait.map(|wait| wait + Duration::from_millis(1));
        let timeout = wait.map_or(PollTimeout::NONE, |wait| PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX));
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.pipes.iter().map(|(pipe, _)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                tracing::error!(%errno, "failed to poll");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        let ready = fds[1..].iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect::<Vec<_>>();
        drop(fds);
        self.read_pipes(&ready);
    }

    /// Reads each ready pipe once; drops those that ended. True when anything was read.
    fn read_pipes(&mut self, ready: &[bool]) -> bool {
        let mut buffer = [0; FRAME_BYTES_MAX];
        let mut ready = ready.iter();
        let mut any = false;
        let spool = &mut self.spool;
        self.pipes.retain(|(pipe, stream)| {
            if !ready.next().copied().unwrap_or(false) {
                return true;
            }
            match read(pipe, &mut buffer) {
                Ok(0) => false,
                Ok(len) => {
                    any = true;
                    spool.append(now(), *stream, &buffer[..len]);
                    true
                }
                Err(Errno::EAGAIN | Errno::EINTR) => true,
                Err(errno) => {
                    tracing::warn!(%errno, "failed to read output");
                    false
                }
            }
        });
        any
    }

    fn obey(&mut self, signals: &SignalFd) {
        while let Ok(Some(info)) = signals.read_signal() {
            let now = Instant::now();
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGTERM | Signal::SIGINT) if !self.stopped => {
                    swell_system::crash::point("shim::on_stop");
                    self.stopped = true;
                    // Checked when the spec was read.
                    let signal = self.spec.stop.signal().unwrap_or(Signal::SIGTERM);
                    // Not yet waited for, so the id is still its own.
                    if let Err(errno) = kill(self.pid, signal) {
                        tracing::warn!(%errno, %signal, "failed to signal the command");
                    }
                    let timeout_at = now.checked_add(self.spec.stop.timeout.as_duration());
                    self.kill_at = [self.kill_at, timeout_at].into_iter().flatten().min();
                }
                Ok(Signal::SIGUSR1) => {
                    self.stopped = true;
                    self.kill_at = Some(now);
                }
                _ => {}
            }
        }
    }

    /// Reaps every child that has ended: the command, and orphans that came to us as their subreaper.
    fn collect_ended(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(status) => self.note_ended(status),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "failed to wait for children");
                    return;
                }
            }
        }
    }

    fn note_ended(&mut self, status: WaitStatus) {
        let outcome = match status {
            WaitStatus::Exited(pid, code) if pid == self.pid => Outcome::Exited(code),
            WaitStatus::Signaled(pid, signal, _) if pid == self.pid => Outcome::Signaled(signal as i32),
            _ => return,
        };
        // Another process may get its id from now on.
        self.reaped = true;
        self.ended = Some(outcome);
    }

    fn kill_all(&mut self) {
        match &self.cgroup {
            Some(cgroup) => {
                if let Err(error) = cgroup.kill_all(KILL_PATIENCE) {
                    tracing::error!(%error, "failed to kill all processes");
                }
            }
            None => {
                if let Some(status) = bare::kill_descendants((!self.reaped).then_some(self.pid), KILL_PATIENCE) {
                    self.note_ended(status);
                }
            }
        }
    }

    fn drain(&mut self) {
        let started = Instant::now();
        while !self.pipes.is_empty() {
            let read = self.read_pipes(&[true, true]);
            if !read && !self.pipes.is_empty() {
                if started.elapsed() > DRAIN_PATIENCE {
                    tracing::warn!("escaped process holds the output open");
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn record(&mut self, outcome: Outcome, started_at: Timestamp, took: Duration) -> ExitRecord {
        self.collect_ended();
        let usage = self.cgroup.as_ref().map_or_else(usage_of_children, Cgroup::usage);
        ExitRecord {
            outcome,
            started_at,
            ended_at: now(),
            took: Millis(took.as_millis() as u64),
            oom_killed: usage.oom_kills > 0,
            timed_out: self.timed_out,
            stopped: self.stopped,
            memory_peak_bytes: usage.memory_peak_bytes,
            cpu_time: usage.cpu_ms.map(Millis),
            output_bytes: self.spool.output_bytes,
            truncated_bytes: self.spool.truncated_bytes,
        }
    }
}

/// Without a control group: what the kernel counted for reaped children. The peak is that of the largest one.
fn usage_of_children() -> Usage {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return Usage::default() };
    let millis = |time: nix::sys::time::TimeVal| (time.tv_sec() as u64) * 1000 + time.tv_usec() as u64 / 1000;
    Usage {
        memory_peak_bytes: Some(usage.max_rss() as u64 * 1024),
        cpu_ms: Some(millis(usage.user_time()) + millis(usage.system_time())),
        oom_kills: 0,
    }
}
