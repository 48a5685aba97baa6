//! Removing what a shim made, from what is on disk alone: at the shim's own end, and after it was killed. Idempotent.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    bare,
    record::{CHILD_PID_FILE, RecordError, SHIM_PID_FILE, read_process},
    spec::{Isolation, ShimSpec, SpecError},
};
use crate::cgroup::{Cgroup, CgroupError};

/// Exists from just before the control group is made: what is in it is ours to kill.
pub(super) const CLAIM_FILE: &str = "cgroup.claimed";
/// How long killed processes may take to die.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why something was left behind. Calling again is safe and may help.
#[derive(Debug, thiserror::Error)]
pub enum ReapError {
    /// The control group could not be emptied or removed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A record could not be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// What was to be run is not known, so neither is what to remove.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A folder could not be removed.
    #[error("removing {}", .0.display())]
    Remove(PathBuf, #[source] io::Error),
    /// Processes do not die.
    #[error("processes started in {} do not die; they probably hang in a system call", .0.display())]
    Undead(PathBuf),
}

/// Ends the shim in `dir` if it still lives, and everything it started; removes control groups and the container's folders.
/// Mounts need no removing: they exist only in namespaces of the shim and its container. What remains are the files that
/// say what happened (`spec.json`, `exit.json`, spool, log): remove the folder when they are no longer wanted.
/// Blocks for up to ten seconds or so when processes hang: call it from a thread that may.
pub fn reap(dir: &Path) -> Result<(), ReapError> {
    // A folder that is gone, or in which nothing was asked, has nothing to reap.
    let Ok(dir) = dir.canonicalize() else { return Ok(()) };
    let shim = read_process(&dir, SHIM_PID_FILE)?;
    if let Some(shim) = shim.filter(|shim| shim.is_alive()) {
        kill(Pid::from_raw(shim.pid), Signal::SIGKILL).ok();
        let started = std::time::Instant::now();
        while shim.is_alive() {
            if started.elapsed() > PATIENCE {
                return Err(ReapError::Undead(dir));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    clean(&dir)
}

/// The same without the shim itself: what it does at its own end.
pub(super) fn clean(dir: &Path) -> Result<(), ReapError> {
    let spec = match ShimSpec::read(dir) {
        Ok(spec) => spec,
        // Never got as far as starting anything, or was refused.
        Err(SpecError::Read(_, error)) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(SpecError::Invalid(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    swell_system::crash::point("shim::before_cleanup");
    match spec.kind {
        Isolation::Container(_) | Isolation::Process(_) if !dir.join(CLAIM_FILE).exists() => {}
        Isolation::Container(_) | Isolation::Process(_) => {
            // An invalid path was refused before anything was made.
            match Cgroup::new(&spec.cgroup) {
                Ok(cgroup) => {
                    cgroup.kill_all(PATIENCE)?;
                    cgroup.remove()?;
                }
                Err(CgroupError::Path(_) | CgroupError::NotMounted) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Isolation::Bare => {
            let child = read_process(dir, CHILD_PID_FILE)?;
            if !bare::kill_marked(dir, child.as_ref(), PATIENCE) {
                return Err(ReapError::Undead(dir.to_owned()));
            }
        }
    }
    for name in ["state", "bundle"] {
        let path = dir.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(ReapError::Remove(path, error)),
            _ => {}
        }
    }
    Ok(())
}
