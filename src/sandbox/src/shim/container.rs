//! An OCI container made with youki's libcontainer: stages its root in a mount namespace of the shim's own, creates it,
//! raises its loopback and starts it. The one place (with `oci`) that knows libcontainer.
//!
//! The root lives on a tmpfs that only the shim's mount namespace sees, for two reasons: the container's root is a nobody
//! who could not walk through `/var/lib/groundswell` to sources below it, and when the shim dies, however it dies, the
//! mounts die with it.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, lchown, symlink},
    },
    path::{Component, Path, PathBuf},
};

use libcontainer::{
    container::{Container, builder::ContainerBuilder},
    oci_spec::runtime::Spec,
    syscall::syscall::SyscallType,
    workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError, default::DefaultExecutor},
};
use nix::{
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{prctl, signal::Signal, stat::Mode},
    unistd::{self, Pid, pipe2},
};

use super::{
    chain,
    child::Child,
    oci::{self, ResolvedBind},
    record::{CHILD_PID_FILE, Failure, write_process},
    reset_signals,
    spec::{Bind, ContainerSpec, ShimSpec},
};

/// Places that exist on every system; the first that hides nothing we need gets the staging tmpfs (seen by the shim only).
const STAGING_PLACES: [&str; 5] = ["/mnt", "/media", "/srv", "/opt", "/home"];
/// What is never taken from the machine's root besides `/usr`: these are links into it, or folders bound like it.
const SYSTEM_DIRS: [&str; 8] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32", "libn32"];

pub(super) fn start(dir: &Path, spec: &ShimSpec, container: &ContainerSpec) -> Result<Child, Failure> {
    let staged = stage(dir, container).map_err(|error| Failure {
        what: "prepare the container's root".to_owned(),
        why: error.to_string(),
        way_out: "mounting needs root and a kernel that allows it; `swell doctor` says what this machine allows".to_owned(),
    })?;
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|errno| failure(format!("creating a pipe: {errno}")));
    let (stdout, child_stdout) = pipe()?;
    let (stderr, child_stderr) = pipe()?;
    let mut container = create(dir, spec, container, &staged, child_stdout, child_stderr)?;
    swell_system::crash::point("shim::after_create");
    let pid = container.pid().ok_or_else(|| failure("libcontainer gave no process id".to_owned()))?;
    let pid = Pid::from_raw(pid.as_raw());
    write_process(&dir.join(CHILD_PID_FILE), pid).map_err(|error| failure(error.to_string()))?;
    swell_system::crash::point("shim::after_child");
    if let Err(error) = raise_loopback(pid) {
        tracing::warn!(%error, "failed to raise the container's loopback");
    }
    container.start().map_err(|error| failure(chain(&error)))?;
    Ok(Child { pid, stdout, stderr })
}

fn failure(why: String) -> Failure {
    let way_out = if why.contains("not found in $PATH") {
        "the image `host` has what this machine has in /usr: install it there, or correct the command"
    } else {
        "`swell doctor` says what this machine allows; shim.log has more"
    };
    Failure { what: "create the container".to_owned(), why, way_out: way_out.to_owned() }
}

fn create(
    dir: &Path,
    spec: &ShimSpec,
    container: &ContainerSpec,
    staged: &Staged,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> Result<Container, Failure> {
    // Else the container would have the groups of whoever started us.
    unistd::setgroups(&[]).map_err(|errno| failure(format!("giving up supplementary groups: {errno}")))?;
    let (bundle, state) = (dir.join("bundle"), dir.join("state"));
    let prepare = || {
        fs::DirBuilder::new().mode(0o700).create(&bundle)?;
        fs::DirBuilder::new().mode(0o700).create(&state)?;
        let config = oci::config(spec, container, &staged.root, &staged.binds);
        fs::write(bundle.join("config.json"), serde_json::to_vec(&config)?)
    };
    prepare().map_err(|error| failure(format!("writing the bundle: {error}")))?;
    ContainerBuilder::new("c".to_owned(), SyscallType::default())
        .with_executor(Execute(DefaultExecutor {}))
        .with_stdout(stdout)
        .with_stderr(stderr)
        .with_root_path(state)
        .map(|builder| builder.as_init(&bundle).with_systemd(false).with_detach(true))
        .and_then(|builder| builder.build())
        .map_err(|error| failure(chain(&error)))
}

/// libcontainer's own way of executing, after undoing what the shim did to its signals, and bound to the shim's life.
#[derive(Clone)]
struct Execute(DefaultExecutor);

impl Executor for Execute {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.0.validate(spec)
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        self.0.setup_envs(envs)
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        // Process 1 dies with the shim, and its pid namespace with it: a build whose output nobody reads is of no use.
        let prepared = prctl::set_pdeathsig(Signal::SIGKILL).and_then(|()| reset_signals());
        let error = match prepared {
            Ok(()) => match self.0.exec(spec) {
                Ok(()) => return Ok(()),
                Err(error) => chain(&error),
            },
            Err(errno) => errno.to_string(),
        };
        // The shim no longer listens for errors; the output is where a person will look. 126 as a shell says it.
        eprintln!("cannot execute the command: {error}");
        std::process::exit(126)
    }
}

/// The container's root as the shim's mount namespace sees it.
struct Staged {
    root: PathBuf,
    binds: Vec<ResolvedBind>,
}

/// What could not be staged.
#[derive(Debug, thiserror::Error)]
enum StageError {
    #[error("{0}: {1}")]
    Mount(String, nix::Error),
    #[error("{0}: {1}")]
    File(String, io::Error),
    #[error("none of {STAGING_PLACES:?} is a folder that can be covered")]
    NoPlace,
}

fn stage(dir: &Path, container: &ContainerSpec) -> Result<Staged, StageError> {
    let mounting = |what: &str| {
        let what = what.to_owned();
        move |errno| StageError::Mount(what, errno)
    };
    unshare(CloneFlags::CLONE_NEWNS).map_err(mounting("making a mount namespace"))?;
    // Slave: what the machine unmounts later disappears here too, so that we keep no disk busy; nothing goes back.
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(mounting("making mounts private"))?;
    // Opened before anything is covered, and in the namespace in which they will be bound.
    let sources = container.binds.iter().map(open_source).collect::<Result<Vec<_>, _>>()?;
    let system = fs::canonicalize("/usr").unwrap_or_else(|_| "/usr".into());
    let place = STAGING_PLACES
        .iter()
        .map(Path::new)
        .find(|place| place.is_dir() && !place.is_symlink() && !dir.starts_with(place) && !system.starts_with(place))
        .ok_or(StageError::NoPlace)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("groundswell"), place, Some("tmpfs"), flags, Some("mode=0755,size=16m")).map_err(mounting("mounting a tmpfs"))?;
    let (root, held) = (place.join("root"), place.join("binds"));
    make_dir(&root)?;
    make_dir(&held)?;
    build_root(&root, container.id_base)?;
    let mut binds = host_system(&root)?;
    for (index, (bind, source)) in container.binds.iter().zip(&sources).enumerate() {
        let (point, is_dir) = (held.join(index.to_string()), source.is_dir);
        let file = |path: &Path| File::create(path).map(drop).map_err(filing("creating", path));
        if is_dir {
            make_dir(&point)?
        } else {
            file(&point)?
        }
        let what = format!("binding {}", bind.source.display());
        let from = format!("/proc/self/fd/{}", source.fd.as_raw_fd());
        mount(Some(from.as_str()), &point, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).map_err(mounting(&what))?;
        if bind.owned_by_container {
            hand_over(&point, source, container.id_base).map_err(filing("handing over", &bind.source))?;
        }
        // The mount point, where it is on the root itself; below another bind the container's root makes it.
        let inside = root.join(bind.destination.strip_prefix("/").unwrap_or(&bind.destination));
        if !container.binds[..index].iter().any(|other| bind.destination.starts_with(&other.destination)) {
            make_dirs(&root, if is_dir { &inside } else { inside.parent().unwrap_or(&root) })?;
            if !is_dir && !inside.exists() {
                file(&inside)?;
            }
        }
        binds.push(ResolvedBind { source: point, destination: bind.destination.clone(), read_only: bind.read_only });
    }
    Ok(Staged { root, binds })
}

struct Source {
    fd: OwnedFd,
    is_dir: bool,
}

fn open_source(bind: &Bind) -> Result<Source, StageError> {
    let opening = |errno| StageError::Mount(format!("opening {}", bind.source.display()), errno);
    let fd = open(&bind.source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(opening)?;
    let is_dir = fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())).is_ok_and(|meta| meta.is_dir());
    Ok(Source { fd, is_dir })
}

/// Gives a folder that is not the container's yet to its root: links are changed themselves, never followed; other file
/// systems below it are left alone.
fn hand_over(path: &Path, source: &Source, id_base: u32) -> io::Result<()> {
    if !source.is_dir {
        return lchown(path, Some(id_base), Some(id_base));
    }
    let ours = id_base..id_base + ContainerSpec::ID_COUNT;
    for entry in walkdir::WalkDir::new(path).follow_links(false).same_file_system(true) {
        let entry = entry?;
        let meta = entry.metadata()?;
        if !ours.contains(&meta.uid()) || !ours.contains(&meta.gid()) {
            lchown(entry.path(), Some(id_base), Some(id_base))?;
        }
    }
    Ok(())
}

fn filing(what: &str, path: &Path) -> impl FnOnce(io::Error) -> StageError {
    let what = format!("{what} {}", path.display());
    move |error| StageError::File(what, error)
}

fn make_dir(path: &Path) -> Result<(), StageError> {
    fs::DirBuilder::new().mode(0o755).create(path).map_err(filing("creating", path))
}

/// `path` and what is missing between it and `root`; a link on the way (`/bin` → `usr/bin`) is refused, not followed.
fn make_dirs(root: &Path, path: &Path) -> Result<(), StageError> {
    let mut current = root.to_owned();
    for part in path.strip_prefix(root).unwrap_or(path).components() {
        let Component::Normal(part) = part else { continue };
        current.push(part);
        match fs::symlink_metadata(&current) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(filing("binding onto", &current)(io::Error::other("it is a link or a file in the image"))),
            Err(_) => make_dir(&current)?,
        }
    }
    Ok(())
}

fn build_root(root: &Path, id_base: u32) -> Result<(), StageError> {
    for name in ["dev", "etc", "proc", "run", "tmp", "usr"] {
        make_dir(&root.join(name))?;
    }
    oci::write_etc(&root.join("etc")).map_err(filing("filling", &root.join("etc")))?;
    // The container's root makes missing mount points itself, such as those for devices.
    lchown(root, Some(id_base), Some(id_base)).map_err(filing("handing over", root))
}

/// `/usr` and what belongs to it, as this machine lays it out.
fn host_system(root: &Path) -> Result<Vec<ResolvedBind>, StageError> {
    let read_only = |path: PathBuf| ResolvedBind { source: path.clone(), destination: path, read_only: true };
    let mut binds = vec![read_only("/usr".into())];
    for name in SYSTEM_DIRS {
        let host = Path::new("/").join(name);
        let inside = root.join(name);
        match fs::symlink_metadata(&host) {
            Ok(meta) if meta.is_symlink() => {
                let target = fs::read_link(&host).map_err(filing("reading", &host))?;
                symlink(target, &inside).map_err(filing("linking", &inside))?;
            }
            Ok(meta) if meta.is_dir() => {
                make_dir(&inside)?;
                binds.push(read_only(host));
            }
            _ => {}
        }
    }
    for host in oci::etc_dirs() {
        make_dirs(root, &root.join(host.strip_prefix("/").unwrap_or(&host)))?;
        binds.push(read_only(host));
    }
    Ok(binds)
}

/// Sets `lo` up in the network namespace of `pid`, then returns to our own. Until then nothing in it can use the network.
fn raise_loopback(pid: Pid) -> io::Result<()> {
    let (theirs, ours) = (File::open(format!("/proc/{pid}/ns/net"))?, File::open("/proc/self/ns/net")?);
    setns(theirs.as_fd(), CloneFlags::CLONE_NEWNET)?;
    let raised = set_loopback_up();
    setns(ours.as_fd(), CloneFlags::CLONE_NEWNET)?;
    raised
}

/// Raises the loopback interface of the current network namespace, as in netdevice(7).
fn set_loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request outlives the call and is what SIOCSIFFLAGS expects.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
