//! Control groups: a named group in every hierarchy this machine has, its limits, its figures, and killing all that is in it.
//! Version 1, hybrid (version 1 controllers beside an empty version 2 tree) and pure version 2. Must not know what runs inside.
//!
//! Source of the file formats: the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use swell_system::files::{FileError, failed};

/// Why a control group could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The path is not one that this program may create.
    #[error(
        "`{0}` is not a control group path: it must be absolute, with at least two plain parts, such as `/groundswell/builds/b1`"
    )]
    Path(String),
    /// The mount table could not be read.
    #[error("reading /proc/self/mountinfo for control groups")]
    Mounts(#[source] io::Error),
    /// Nothing is mounted.
    #[error("no control groups are mounted on this machine; mount /sys/fs/cgroup, or run without isolation in `swell dev`")]
    NotMounted,
    /// A limit was asked for whose controller is absent.
    #[error("the `{0}` controller of control groups is not available here; enable it in the kernel, or leave out that limit")]
    NoController(&'static str),
    /// A file operation failed.
    #[error("{0}; running as root in a writable control group tree is required")]
    File(#[from] FileError),
    /// A group that should be ours alone has processes already.
    #[error("control group {path} is in use by {count} processes; reap what ran in it, or name another")]
    InUse {
        /// Path of the group below the control group tree.
        path: String,
        /// How many are in it.
        count: usize,
    },
    /// Processes remain although they were killed.
    #[error("{count} processes in control group {path} do not die; they probably hang in a system call (a dead network disk?)")]
    Undead {
        /// Path of the group below the control group tree.
        path: String,
        /// Number of processes that remain.
        count: usize,
    },
}

/// Limits of a group; what is `None` is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory in bytes; swap is never allowed on top of it.
    pub memory_bytes: Option<u64>,
    /// Processor time in cores: 2.0 is two whole ones.
    pub cpu_cores: Option<f64>,
    /// Processes and threads at once.
    pub pids: Option<u64>,
    /// Open files of each process (a resource limit, not a group's).
    pub nofile: Option<u64>,
}

/// The window over which a share of processor time is enforced, in microseconds: the kernel's default.
pub const CPU_PERIOD_US: u64 = 100_000;

impl Limits {
    /// The processor quota in microseconds of each [`CPU_PERIOD_US`]; the kernel accepts no less than 1,000.
    pub fn cpu_quota_us(&self) -> Option<u64> {
        self.cpu_cores.map(|cores| ((cores * CPU_PERIOD_US as f64) as u64).max(1000))
    }
}

/// What a group used; `None` where its controller is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Most memory at once, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Processor time, user and system, in milliseconds.
    pub cpu_ms: Option<u64>,
    /// Processes that the kernel killed because the group's memory limit was reached.
    pub oom_kills: u64,
}

/// Version 1 controllers that a group of ours joins. The list is that of libcontainer, so that both name the same folders.
const V1_CONTROLLERS: [&str; 7] = ["cpu", "cpuacct", "memory", "pids", "freezer", "devices", "blkio"];
/// Those that only libcontainer joins. Made and removed with the rest.
const V1_CONTAINERS_ONLY: [&str; 5] = ["cpuset", "hugetlb", "net_cls", "net_prio", "perf_event"];
const V2_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The hierarchies that this machine has mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchies {
    /// Version 1 or hybrid: a mount point for each controller.
    V1(Vec<(String, PathBuf)>),
    /// Pure version 2: one mount point.
    V2(PathBuf),
}

impl Hierarchies {
    /// Reads the mount table.
    pub fn detect() -> Result<Self, CgroupError> {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?)
    }

    /// proc(5), *mountinfo*: fields up to ` - `, then type, source and super options.
    fn parse(mountinfo: &str) -> Result<Self, CgroupError> {
        let mut v1 = Vec::new();
        let mut v2 = None;
        for line in mountinfo.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let Some(point) = mount.split(' ').nth(4) else { continue };
            let mut fields = filesystem.split(' ');
            match fields.next() {
                Some("cgroup2") => v2 = v2.or_else(|| Some(PathBuf::from(point))),
                Some("cgroup") => {
                    let options = fields.nth(1).unwrap_or_default();
                    for controller in V1_CONTROLLERS.iter().chain(&V1_CONTAINERS_ONLY) {
                        let known = v1.iter().any(|(name, _): &(String, PathBuf)| name == controller);
                        if !known && options.split(',').any(|option| option == *controller) {
                            v1.push(((*controller).to_owned(), PathBuf::from(point)));
                        }
                    }
                }
                _ => {}
            }
        }
        match (v1.is_empty(), v2) {
            (false, _) => Ok(Self::V1(v1)),
            (true, Some(point)) => Ok(Self::V2(point)),
            (true, None) => Err(CgroupError::NotMounted),
        }
    }
}

/// One group, by its path below the root of every hierarchy. Holding it keeps nothing alive.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: String,
    hierarchies: Hierarchies,
}

impl Cgroup {
    /// Names the group `path` (absolute, as `/groundswell/builds/b12-1-build`); creates nothing.
    pub fn new(path: &str) -> Result<Self, CgroupError> {
        Self::with_hierarchies(path, Hierarchies::detect()?)
    }

    fn with_hierarchies(path: &str, hierarchies: Hierarchies) -> Result<Self, CgroupError> {
        let error = || CgroupError::Path(path.to_owned());
        let relative = path.strip_prefix('/').ok_or_else(error)?;
        let parts = Path::new(relative).components().collect::<Vec<_>>();
        let plain = parts.iter().all(|part| matches!(part, Component::Normal(_)));
        if !plain || parts.len() < 2 || path.contains('\n') {
            return Err(error());
        }
        Ok(Self { path: relative.to_owned(), hierarchies })
    }

    /// In words, which kind of control groups these are and what they can limit.
    pub fn describe(&self) -> String {
        match &self.hierarchies {
            Hierarchies::V2(_) => "version 2".to_owned(),
            Hierarchies::V1(mounts) => {
                let names = mounts.iter().map(|(name, _)| name.as_str()).filter(|name| V1_CONTROLLERS.contains(name));
                format!("version 1 with {}", names.collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// The folders of this group, each once (controllers may share a mount).
    fn dirs(&self, controllers: &[&str]) -> Vec<PathBuf> {
        match &self.hierarchies {
            Hierarchies::V2(point) => vec![point.join(&self.path)],
            Hierarchies::V1(mounts) => mounts
                .iter()
                .filter(|(controller, _)| controllers.contains(&controller.as_str()))
                .map(|(_, point)| point.join(&self.path))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
        }
    }

    fn all_dirs(&self) -> Vec<PathBuf> {
        self.dirs(&[V1_CONTROLLERS.as_slice(), &V1_CONTAINERS_ONLY].concat())
    }

    fn dir_of(&self, controller: &'static str) -> Result<PathBuf, CgroupError> {
        self.dirs(&[controller]).pop().ok_or(CgroupError::NoController(controller))
    }

    /// Creates the group in every hierarchy. Already there is fine.
    pub fn create(&self) -> Result<(), CgroupError> {
        // All of them: libcontainer would not survive another shim's removing a common parent at the same moment.
        for dir in self.all_dirs() {
            create_dir_against_removers(&dir).map_err(failed("create", &dir))?;
        }
        if let Hierarchies::V2(point) = &self.hierarchies {
            let mut parent = point.clone();
            for part in Path::new(&self.path).parent().into_iter().flat_map(Path::components) {
                enable_v2_controllers(&parent);
                parent.push(part);
            }
            enable_v2_controllers(&parent);
        }
        Ok(())
    }

    /// Sets the limits. The group must exist.
    pub fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        let v2 = matches!(self.hierarchies, Hierarchies::V2(_));
        if let Some(bytes) = limits.memory_bytes {
            let dir = self.dir_of("memory")?;
            if v2 {
                write(&dir.join("memory.max"), bytes)?;
                write_if_there(&dir.join("memory.swap.max"), 0)?;
            } else {
                write(&dir.join("memory.limit_in_bytes"), bytes)?;
                write_if_there(&dir.join("memory.memsw.limit_in_bytes"), bytes)?;
            }
        }
        if let Some(quota) = limits.cpu_quota_us() {
            let dir = self.dir_of("cpu")?;
            if v2 {
                write(&dir.join("cpu.max"), format!("{quota} {CPU_PERIOD_US}"))?;
            } else {
                write(&dir.join("cpu.cfs_period_us"), CPU_PERIOD_US)?;
                write(&dir.join("cpu.cfs_quota_us"), quota)?;
            }
        }
        if let Some(pids) = limits.pids {
            write(&self.dir_of("pids")?.join("pids.max"), pids)?;
        }
        Ok(())
    }

    /// Moves the calling process into the group. Its children follow.
    pub fn join(&self) -> Result<(), CgroupError> {
        for dir in self.dirs(&V1_CONTROLLERS) {
            write(&dir.join("cgroup.procs"), 0)?;
        }
        Ok(())
    }

    /// Every process in the group and in groups below it.
    pub fn pids(&self) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        for dir in self.all_dirs() {
            for dir in tree(&dir) {
                let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                // A process outside our own pid namespace shows as 0, which would mean ourselves to kill(2).
                pids.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid > 0));
            }
        }
        pids
    }

    /// Kills everything in the group with SIGKILL and waits until it is empty, at most `patience`. A group that does not
    /// exist is empty. Processes that the caller must reap count as gone once they are zombies outside the group.
    pub fn kill_all(&self, patience: Duration) -> Result<(), CgroupError> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let pids = self.pids();
            if pids.is_empty() {
                return Ok(());
            }
            self.kill_once(&pids);
            if started.elapsed() > patience {
                return Err(CgroupError::Undead { path: self.path.clone(), count: pids.len() });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// One sweep. Frozen meanwhile on version 1, so that nothing forks away under the sweep.
    fn kill_once(&self, pids: &BTreeSet<i32>) {
        let signal_all = |pids: &BTreeSet<i32>| {
            for pid in pids {
                // ESRCH: it died by itself meanwhile, which is what we want.
                kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
            }
        };
        if let Hierarchies::V2(point) = &self.hierarchies
            && fs::write(point.join(&self.path).join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        let freezer = match &self.hierarchies {
            Hierarchies::V1(_) => self.dir_of("freezer").ok().map(|dir| dir.join("freezer.state")),
            Hierarchies::V2(_) => None,
        };
        let frozen = freezer.as_ref().is_some_and(|file| fs::write(file, "FROZEN").is_ok());
        signal_all(pids);
        if frozen {
            signal_all(&self.pids());
        }
        if let Some(Err(error)) = freezer.map(|file| fs::write(file, "THAWED"))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(cgroup = %self.path, %error, "failed to thaw a control group");
        }
    }

    /// What the group has used so far. Call it before [`Cgroup::remove`].
    pub fn usage(&self) -> Usage {
        let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let field = |path: PathBuf, key: &str| {
            let text = fs::read_to_string(path).ok()?;
            text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok())
        };
        match &self.hierarchies {
            Hierarchies::V2(point) => {
                let dir = point.join(&self.path);
                Usage {
                    memory_peak_bytes: number(dir.join("memory.peak")),
                    cpu_ms: field(dir.join("cpu.stat"), "usage_usec ").map(|us| us / 1000),
                    oom_kills: field(dir.join("memory.events"), "oom_kill ").unwrap_or(0),
                }
            }
            Hierarchies::V1(_) => {
                let memory = self.dir_of("memory").ok();
                let peak = memory.as_ref().and_then(|dir| number(dir.join("memory.max_usage_in_bytes")));
                let oom = memory.and_then(|dir| field(dir.join("memory.oom_control"), "oom_kill "));
                let cpu = self.dir_of("cpuacct").ok().and_then(|dir| number(dir.join("cpuacct.usage")));
                Usage { memory_peak_bytes: peak, cpu_ms: cpu.map(|ns| ns / 1_000_000), oom_kills: oom.unwrap_or(0) }
            }
        }
    }

    /// Whether any of its folders exists.
    pub fn exists(&self) -> bool {
        self.all_dirs().iter().any(|dir| dir.exists())
    }

    /// Removes the (empty) group everywhere, then those of its parents that nobody uses any more.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for dir in self.all_dirs() {
            for dir in tree(&dir).into_iter().rev() {
                remove_dir_when_idle(&dir).map_err(failed("remove", &dir))?;
            }
            // Stops at the first that is in use; the mount point itself is never empty.
            let levels = Path::new(&self.path).components().count();
            for parent in dir.ancestors().skip(1).take(levels - 1) {
                if fs::remove_dir(parent).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// `dir` and all folders below it, parents first. Groups are shallow: ours have no children unless a service made some.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if !dir.is_dir() {
        return found;
    }
    found.push(dir.to_owned());
    let mut next = 0;
    while next < found.len() {
        let children = fs::read_dir(&found[next]).into_iter().flatten().flatten();
        let children = children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())).map(|child| child.path());
        let children = children.collect::<Vec<_>>();
        found.extend(children);
        next += 1;
    }
    found
}

/// Another shim may remove the common parent between our creating it and our creating the child: try again.
fn create_dir_against_removers(dir: &Path) -> io::Result<()> {
    let mut last = Ok(());
    for _ in 0..20 {
        last = fs::create_dir_all(dir);
        match &last {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => return last,
        }
    }
    last
}

/// The kernel reports a group busy for a moment after its last process died.
fn remove_dir_when_idle(dir: &Path) -> io::Result<()> {
    let started = Instant::now();
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && started.elapsed() < Duration::from_secs(2) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// Best effort: a controller that cannot be enabled shows itself when its limit is set.
fn enable_v2_controllers(parent: &Path) {
    for controller in V2_CONTROLLERS {
        if let Err(error) = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}")) {
            tracing::debug!(parent = %parent.display(), controller, %error, "failed to enable a controller");
        }
    }
}

fn write(path: &Path, value: impl ToString) -> Result<(), CgroupError> {
    Ok(fs::write(path, value.to_string()).map_err(failed("write", path))?)
}

/// For files that exist only where swap accounting is on.
fn write_if_there(path: &Path, value: u64) -> Result<(), CgroupError> {
    match write(path, value) {
        Err(CgroupError::File(FileError { source, .. })) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
29 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    #[test]
    fn controllers_that_share_a_mount_share_a_folder() {
        let group = Cgroup::with_hierarchies("/groundswell/a", Hierarchies::parse(HYBRID).unwrap()).unwrap();
        let dirs = group.dirs(&V1_CONTROLLERS);
        let expected = ["/sys/fs/cgroup/cpu,cpuacct/groundswell/a", "/sys/fs/cgroup/memory/groundswell/a"];
        assert_eq!(dirs, expected.map(PathBuf::from));
        assert!(matches!(group.dir_of("pids"), Err(CgroupError::NoController("pids"))));
    }

    #[test]
    fn only_version_2_mounted_is_version_2() {
        let text = "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(Hierarchies::parse(text).unwrap(), Hierarchies::V2("/sys/fs/cgroup".into()));
        assert!(matches!(Hierarchies::parse(""), Err(CgroupError::NotMounted)));
    }

    #[test]
    fn path_that_could_hit_others_is_refused() {
        let hierarchies = Hierarchies::parse(HYBRID).unwrap();
        for path in ["", "/", "/a", "a/b", "/a/../b", "//", "/a/b\n"] {
            assert!(Cgroup::with_hierarchies(path, hierarchies.clone()).is_err(), "{path}");
        }
    }

    /// A version 2 tree made of plain files: what would be written is what the kernel documents.
    #[test]
    fn version_2_limits_are_written_as_documented() {
        let root = tempfile::tempdir().unwrap();
        let group = Cgroup::with_hierarchies("/groundswell/a", Hierarchies::V2(root.path().to_owned())).unwrap();
        group.create().unwrap();
        let dir = root.path().join("groundswell/a");
        fs::write(dir.join("memory.swap.max"), "max").unwrap();
        group.limit(&Limits { memory_bytes: Some(1 << 20), cpu_cores: Some(1.5), pids: Some(7), nofile: None }).unwrap();
        let read = |name| fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!((read("memory.max"), read("memory.swap.max")), ("1048576".into(), "0".into()));
        assert_eq!((read("cpu.max"), read("pids.max")), ("150000 100000".into(), "7".into()));
        fs::write(dir.join("cpu.stat"), "usage_usec 4200\nuser_usec 1\n").unwrap();
        fs::write(dir.join("memory.events"), "oom 3\noom_kill 2\n").unwrap();
        fs::write(dir.join("memory.peak"), "99\n").unwrap();
        assert_eq!(group.usage(), Usage { memory_peak_bytes: Some(99), cpu_ms: Some(4), oom_kills: 2 });
    }
}
