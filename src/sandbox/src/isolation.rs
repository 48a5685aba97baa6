//! What this machine and this user allow: whether builds and instances can be isolated, why not, and what to change.
//! Looks and tries; changes nothing. For `swell doctor` and `swell dev`.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};
use serde::Serialize;

use super::cgroup::{Cgroup, Limits};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What: `user namespaces`.
    pub name: &'static str,
    /// Whether it works here.
    pub ok: bool,
    /// Whether isolation needs it.
    pub required: bool,
    /// In one line: what was found.
    pub reason: String,
    /// What to change, where it does not work.
    pub fix: Option<String>,
}

/// How far commands can be isolated here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Containers for builds, control groups and users for instances.
    Full,
    /// Only plain processes, and only `swell dev` and the demo may run those.
    None {
        /// The first required check that failed.
        why: String,
    },
}

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IsolationReport {
    /// In the order in which they were made.
    pub checks: Vec<Check>,
    /// The level of isolation that the checks allow.
    pub level: Level,
}

/// Looks at this machine. Takes some ten milliseconds and blocks: not on an async task.
pub fn probe() -> IsolationReport {
    let checks = vec![root(), user_namespaces(), cgroups(), limits(), seccomp(), overlay()];
    let failed = checks.iter().find(|check| check.required && !check.ok);
    let level = failed.map_or(Level::Full, |check| Level::None { why: format!("{}: {}", check.name, check.reason) });
    IsolationReport { checks, level }
}

fn root() -> Check {
    let ok = geteuid().is_root();
    Check {
        name: "root",
        ok,
        required: true,
        reason: if ok { "running as root".to_owned() } else { format!("running as user {}", geteuid()) },
        fix: (!ok).then(|| "run the runner and the agent as root: they give their rights up for what they run".to_owned()),
    }
}

fn user_namespaces() -> Check {
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET;
    let tried = try_in_child(move || unshare(flags).map_err(io::Error::from));
    let setting = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let fix = if setting("/proc/sys/user/max_user_namespaces") == Some(0) {
        "sysctl -w user.max_user_namespaces=10000"
    } else if setting("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        "sysctl -w kernel.unprivileged_userns_clone=1"
    } else if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give swell an AppArmor profile with `userns`"
    } else {
        "inside a container, allow namespaces (`--privileged`, or `--security-opt seccomp=unconfined --cap-add SYS_ADMIN`)"
    };
    check("user namespaces", true, tried, "user, mount, pid and network namespaces can be made", fix)
}

/// Which hierarchies there are and whether a group can be made in each.
fn cgroups() -> Check {
    let group = Cgroup::new(&probe_path());
    let tried = group.and_then(|group| {
        let created = group.create();
        // What could be made in some hierarchies must not stay.
        let removed = group.remove();
        created.and(removed).map(|()| group)
    });
    let found = tried.as_ref().map_or(String::new(), |group| group.describe());
    let fix = "run as root where /sys/fs/cgroup is writable; inside a container: `--privileged --cgroupns=host`";
    check("control groups", true, tried.map(drop), &found, fix)
}

/// Whether the controllers that limits need are there.
fn limits() -> Check {
    let all = Limits { memory_bytes: Some(64 << 20), cpu_cores: Some(1.0), pids: Some(100), nofile: None };
    let tried = Cgroup::new(&probe_path()).and_then(|group| {
        let limited = group.create().and_then(|()| group.limit(&all));
        let removed = group.remove();
        limited.and(removed)
    });
    let fix = "boot with `cgroup_enable=memory swapaccount=1`, or mount the missing controllers";
    check("resource limits", true, tried, "memory, processor and process limits can be set", fix)
}

/// A name that no other probe uses, also not one at the same moment in this process.
fn probe_path() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("/groundswell/probe-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn seccomp() -> Check {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").and_then(|actions| {
        let has_errno = actions.split_whitespace().any(|action| action == "errno");
        if has_errno { Ok(()) } else { Err(io::Error::other("filters cannot refuse calls")) }
    });
    check("seccomp", true, actions, "system call filters are available", "use a kernel with CONFIG_SECCOMP_FILTER")
}

fn overlay() -> Check {
    let tried = try_in_child(|| {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(io::Error::from)?;
        let text = |bytes: &'static [u8]| bytes.as_ptr().cast::<libc::c_char>();
        // Two read-only layers need no folder of ours. SAFETY: constant strings that end in a zero byte.
        let mounted = unsafe {
            let options = text(b"lowerdir=/usr:/etc\0").cast::<libc::c_void>();
            libc::mount(text(b"overlay\0"), text(b"/mnt\0"), text(b"overlay\0"), libc::MS_RDONLY, options)
        };
        if mounted == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    });
    check("overlay", false, tried, "overlay mounts work in user namespaces", "use a kernel of 5.11 or later with overlayfs")
}

fn check<E: std::fmt::Display>(name: &'static str, required: bool, tried: Result<(), E>, found: &str, fix: &str) -> Check {
    match tried {
        Ok(()) => Check { name, ok: true, required, reason: found.to_owned(), fix: None },
        Err(error) => Check { name, ok: false, required, reason: error.to_string(), fix: Some(fix.to_owned()) },
    }
}

/// Runs `attempt` in a child between fork and exec, so that this process is not changed by it. It must do system calls only.
fn try_in_child(attempt: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> io::Result<()> {
    let mut command = Command::new("/bin/true");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the callers' closures allocate nothing and take no lock: they only make system calls.
    unsafe { command.pre_exec(attempt) };
    command.status().map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn failed_check_says_what_to_change_and_decides() {
        let report = probe();
        for check in &report.checks {
            assert!(!check.reason.is_empty(), "{check:?}");
            assert_eq!(check.ok, check.fix.is_none(), "{check:?}");
        }
        let blocked = report.checks.iter().any(|check| check.required && !check.ok);
        assert_eq!(blocked, report.level != Level::Full, "{report:?}");
    }
}
