//! Forking and executing a plain command, with the shim able to record it first and to say what went wrong. Must not know
//! which isolation is wanted: that is the closure it is given.

use std::{
    ffi::CString,
    fs::File,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::{self, ForkResult, Pid, fork, pipe2},
};

use super::{
    record::{CHILD_PID_FILE, Failure, write_process},
    reset_signals,
    spec::ShimSpec,
};

/// Looked through where the spec's environment has no `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running command and the ends of its output.
pub(super) struct Child {
    pub pid: Pid,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Starts `spec.command` with `env`. `setup` runs in the child, just before the change of directory, and says in words what
/// failed. The command is executed only after `child.pid` is on disk; when the shim dies before that, the child ends itself.
pub(super) fn start(
    dir: &Path,
    spec: &ShimSpec,
    env: &[(String, String)],
    setup: impl FnOnce() -> Result<(), String>,
) -> Result<Child, Failure> {
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|errno| failure(format!("creating a pipe: {errno}")));
    let (stdout, child_stdout) = pipe()?;
    let (stderr, child_stderr) = pipe()?;
    let (go_read, go_write) = pipe()?;
    let (status_read, status_write) = pipe()?;
    // SAFETY: the shim has one thread, so the child may do anything that the parent may.
    let pid = match unsafe { fork() }.map_err(|errno| failure(format!("forking: {errno}")))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop((go_write, status_read));
            let why = match become_command(spec, env, setup, go_read, &child_stdout, &child_stderr) {
                Ok(never) => match never {},
                Err(why) => why,
            };
            File::from(status_write).write_all(why.as_bytes()).ok();
            // SAFETY: no destructor of the parent's state may run here.
            unsafe { libc::_exit(127) }
        }
    };
    drop((child_stdout, child_stderr, go_read, status_write));
    write_process(&dir.join(CHILD_PID_FILE), pid).map_err(|error| failure(error.to_string()))?;
    swell_system::crash::point("shim::after_child");
    File::from(go_write).write_all(b"!").ok();
    let mut why = String::new();
    File::from(status_read).read_to_string(&mut why).map_err(|error| failure(error.to_string()))?;
    if !why.is_empty() {
        nix::sys::wait::waitpid(pid, None).ok();
        return Err(failure(why));
    }
    Ok(Child { pid, stdout, stderr })
}

fn failure(why: String) -> Failure {
    Failure {
        what: "start the command".to_owned(),
        why,
        way_out: "check the command, its working directory, its user and its limits".to_owned(),
    }
}

/// In the child: returns only when it failed.
fn become_command(
    spec: &ShimSpec,
    env: &[(String, String)],
    setup: impl FnOnce() -> Result<(), String>,
    go: OwnedFd,
    stdout: &OwnedFd,
    stderr: &OwnedFd,
) -> Result<std::convert::Infallible, String> {
    if File::from(go).read(&mut [0]).map_err(|error| error.to_string())? == 0 {
        return Err("the shim ended first".to_owned());
    }
    unistd::setsid().map_err(|errno| format!("starting a session: {errno}"))?;
    unistd::dup2_stdout(stdout).and_then(|()| unistd::dup2_stderr(stderr)).map_err(|errno| format!("redirecting: {errno}"))?;
    setup()?;
    unistd::chdir(&spec.cwd).map_err(|errno| format!("changing to working directory {}: {errno}", spec.cwd.display()))?;
    let path = env.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
    let program = find_program(&spec.command[0], path)?;
    let text = |text: &str| CString::new(text).map_err(|_| "a text contains a zero byte".to_owned());
    let argv = spec.command.iter().map(|arg| text(arg)).collect::<Result<Vec<_>, _>>()?;
    let envp = env.iter().map(|(name, value)| text(&format!("{name}={value}"))).collect::<Result<Vec<_>, _>>()?;
    let program_text = text(&program.to_string_lossy())?;
    reset_signals().map_err(|errno| format!("resetting signals: {errno}"))?;
    unistd::execve(&program_text, &argv, &envp).map_err(|errno| format!("executing {}: {errno}", program.display()))
}

/// As a shell does, with the rights that the command will have.
fn find_program(name: &str, path: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let executable = |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    let mut places = path.split(':').filter(|place| !place.is_empty()).map(|place| Path::new(place).join(name));
    places.find(executable).ok_or_else(|| format!("`{name}` is not in PATH ({path})"))
}

/// Sets the limit on open files, softly and hard. Only root may raise it above what the shim has.
pub(super) fn limit_open_files(nofile: Option<u64>) -> Result<(), String> {
    let Some(nofile) = nofile else { return Ok(()) };
    setrlimit(Resource::RLIMIT_NOFILE, nofile, nofile).map_err(|errno| {
        let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
        format!("limiting open files to {nofile} (this user may have {hard}): {errno}")
    })
}

/// The environment that the command gets: the spec's and what every command needs.
pub(super) fn environment(spec: &ShimSpec, defaults: &[(&str, &str)]) -> Vec<(String, String)> {
    let given = spec.env.iter().map(|(name, value)| (name.clone(), value.clone()));
    let missing = [("PATH", DEFAULT_PATH)].into_iter().chain(defaults.iter().copied());
    let missing = missing.filter(|(name, _)| !spec.env.contains_key(*name));
    given.chain(missing.map(|(name, value)| (name.to_owned(), value.to_owned()))).collect()
}
