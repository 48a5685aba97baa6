//! A plain process without control group or namespaces, for machines that forbid both. What it starts is found by being a
//! descendant of the shim (its subreaper), and after the shim's death by a mark in the environment.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{self, Pid},
};

use super::{
    child::{self, Child},
    record::{Failure, ProcessRef},
    spec::ShimSpec,
};

/// Names the shim's folder to those who look for what a killed shim left.
const MARK: &str = "SWELL_SHIM_DIR";

pub(super) fn start(dir: &Path, spec: &ShimSpec) -> Result<Child, Failure> {
    let mut env = child::environment(spec, &[]);
    env.push((MARK.to_owned(), dir.to_string_lossy().into_owned()));
    child::start(dir, spec, &env, || child::limit_open_files(spec.limits.nofile))
}

/// Kills every descendant of this process and reaps it; returns how `child` ended if it was reaped here. `child` is `None`
/// once it was reaped: its id may be somebody else's by then.
pub(super) fn kill_descendants(child: Option<Pid>, patience: Duration) -> Option<WaitStatus> {
    let started = Instant::now();
    let mut ended = None;
    if let Some(child) = child {
        killpg(child, Signal::SIGKILL).ok();
    }
    while started.elapsed() < patience {
        for pid in children_of(unistd::getpid()) {
            // Children that we have not waited for: their ids cannot have been reused.
            kill(pid, Signal::SIGKILL).ok();
        }
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(2)),
            Ok(status) if child.is_some() && status.pid() == child => ended = Some(status),
            Ok(_) => {}
            Err(_) => return ended,
        }
    }
    tracing::warn!("processes survived SIGKILL");
    ended
}

fn children_of(parent: Pid) -> Vec<Pid> {
    let parent = parent.to_string();
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(parent.as_str()))
    };
    all_pids().filter(is_child).map(Pid::from_raw).collect()
}

fn all_pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Without the shim: kills what it had started in `dir`, as far as its environment tells. True when nothing is left.
pub(super) fn kill_marked(dir: &Path, child: Option<&ProcessRef>, patience: Duration) -> bool {
    let started = Instant::now();
    let mark = format!("{MARK}={}", dir.display());
    let own = unistd::getpid().as_raw();
    if let Some(child) = child.filter(|child| child.is_alive()) {
        killpg(Pid::from_raw(child.pid), Signal::SIGKILL).ok();
    }
    let marked = || {
        let has_mark = |pid: &i32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            *pid != own && environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        };
        all_pids().filter(has_mark).collect::<BTreeSet<_>>()
    };
    loop {
        let found = marked();
        if found.is_empty() {
            return true;
        }
        for pid in found {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        if started.elapsed() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
