//! A plain process in its own control group, as its own user. Must not know of containers.

use std::{ffi::CString, path::Path};

use nix::{
    sys::prctl,
    unistd::{self, User},
};

use super::{
    child::{self, Child},
    record::Failure,
    spec::{ProcessSpec, ShimSpec},
};
use crate::cgroup::Cgroup;

pub(super) fn start(dir: &Path, spec: &ShimSpec, process: &ProcessSpec, cgroup: &Cgroup) -> Result<Child, Failure> {
    let user = process.user.as_deref().map(find_user).transpose()?;
    let home = user.as_ref().map(|user| user.dir.to_string_lossy().into_owned());
    let defaults = match (&user, &home) {
        (Some(user), Some(home)) => vec![("HOME", home.as_str()), ("USER", user.name.as_str()), ("LOGNAME", user.name.as_str())],
        _ => vec![],
    };
    let env = child::environment(spec, &defaults);
    child::start(dir, spec, &env, || {
        cgroup.join().map_err(|error| error.to_string())?;
        child::limit_open_files(spec.limits.nofile)?;
        if let Some(user) = &user {
            become_user(user)?;
        }
        prctl::set_no_new_privs().map_err(|errno| format!("giving up new privileges: {errno}"))
    })
}

fn find_user(name: &str) -> Result<User, Failure> {
    let failure = |why: String| Failure {
        what: format!("look up the user `{name}`"),
        why,
        way_out: format!("create it (`useradd --system {name}`), or name another in `user`"),
    };
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(failure("this machine has no such user".to_owned())),
        Err(errno) => Err(failure(errno.to_string())),
    }
}

fn become_user(user: &User) -> Result<(), String> {
    if user.uid == unistd::geteuid() && !user.uid.is_root() {
        return Ok(());
    }
    let failed = |what: &str, errno: nix::Error| format!("{what} {} ({}): {errno}; only root may", user.name, user.uid);
    let name = CString::new(user.name.as_str()).map_err(|_| "the user's name contains a zero byte".to_owned())?;
    unistd::initgroups(&name, user.gid).map_err(|errno| failed("taking on the groups of", errno))?;
    unistd::setgid(user.gid).map_err(|errno| failed("taking on the main group of", errno))?;
    unistd::setuid(user.uid).map_err(|errno| failed("becoming", errno))
}
