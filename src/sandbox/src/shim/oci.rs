//! The OCI runtime configuration of a build's container, and the few files of `/etc` in it. Pure data but for reading the
//! machine's `/etc`. Source of the defaults: the OCI runtime specification 1.2 and the profile of the moby project.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    child,
    spec::{ContainerSpec, ShimSpec},
};

/// A bind whose source the container's root can reach.
pub(super) struct ResolvedBind {
    pub source: PathBuf,
    pub destination: PathBuf,
    pub read_only: bool,
}

/// What `config.json` says.
pub(super) fn config(spec: &ShimSpec, container: &ContainerSpec, root: &Path, binds: &[ResolvedBind]) -> Value {
    let env = child::environment(spec, &[("HOME", "/tmp")]);
    let env = env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
    let nofile = spec.limits.nofile.unwrap_or(65_536).min(own_hard_nofile());
    let ids = json!([{ "containerID": 0, "hostID": container.id_base, "size": ContainerSpec::ID_COUNT }]);
    let namespaces = ["user", "mount", "pid", "ipc", "uts", "network", "cgroup"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.2.0",
        "hostname": "build",
        "root": { "path": root, "readonly": true },
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0, "umask": 0o022 },
            "args": spec.command,
            "env": env,
            "cwd": spec.cwd,
            "noNewPrivileges": true,
            "capabilities": { "bounding": [], "effective": [], "inheritable": [], "permitted": [], "ambient": [] },
            "rlimits": [
                { "type": "RLIMIT_NOFILE", "soft": nofile, "hard": nofile },
                { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
            ],
        },
        "mounts": mounts(spec, binds),
        "linux": {
            "uidMappings": ids,
            "gidMappings": ids,
            "namespaces": namespaces,
            // The limits of this group are set by the shim, before libcontainer joins it.
            "cgroupsPath": spec.cgroup,
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": seccomp(),
        },
    })
}

/// No `/sys`: builds have no use for the machine's hardware, and it is one more surface.
fn mounts(spec: &ShimSpec, binds: &[ResolvedBind]) -> Vec<Value> {
    let mut mounts = Vec::new();
    let mut add = |kind: &str, destination: &str, options: &[&str]| {
        mounts.push(json!({ "destination": destination, "type": kind, "source": kind, "options": options }));
    };
    // Pages of a tmpfs count as the container's memory; the size only makes the error a clear one.
    let tmp_size = format!("size={}", spec.limits.memory_bytes.map_or("50%".to_owned(), |bytes| bytes.to_string()));
    add("proc", "/proc", &["nosuid", "noexec", "nodev"]);
    add("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]);
    add("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]);
    add("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]);
    add("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]);
    add("tmpfs", "/tmp", &["nosuid", "nodev", "mode=1777", &tmp_size]);
    // Programs may count on it (FHS 3.0, 5.15), and it is all that there is of /var.
    add("tmpfs", "/var/tmp", &["nosuid", "nodev", "mode=1777", &tmp_size]);
    add("tmpfs", "/run", &["nosuid", "nodev", "noexec", "mode=755", "size=16m"]);
    for bind in binds {
        let mut options = vec!["rbind", "nosuid", "nodev"];
        if bind.read_only {
            options.extend(["ro", "rro"]);
        }
        mounts.push(json!({
            "destination": bind.destination, "type": "bind", "source": bind.source, "options": options,
        }));
    }
    mounts
}

/// A hard limit can only be lowered by a container's root.
fn own_hard_nofile() -> u64 {
    nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard)
}

/// Never of use to a build, and each with a history of holes.
const DENIED: &[&str] = &[
    "_sysctl",
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime64",
    "clock_settime",
    "clock_settime64",
    "create_module",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "get_mempolicy",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "migrate_pages",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "open_tree_attr",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy",
    "set_mempolicy_home_node",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "sysfs",
    "syslog",
    "umount",
    "umount2",
    "uselib",
    "userfaultfd",
    "ustat",
    "vhangup",
    "vm86",
    "vm86old",
    "chroot",
];

/// Flags of clone(2) and unshare(2) that make a namespace: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACE_FLAGS: [u64; 7] = [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
/// unshare(2) only: in clone(2) this bit is part of the exit signal.
const CLONE_NEWTIME: u64 = 0x80;
const EPERM: u32 = 1;
/// clone3(2) passes its flags in memory, where a filter cannot see them; at "no such call" the C library falls back to clone(2).
const ENOSYS: u32 = 38;
/// personality(2): no randomization, page zero, old layout, readable means executable.
const WEAKENING_PERSONALITIES: [u64; 4] = [0x0004_0000, 0x0010_0000, 0x0020_0000, 0x0040_0000];
/// Set in the argument 0xffffffff, which only asks for the current personality.
const PERSONALITY_QUERY_BIT: u64 = 0x8000_0000;
const AF_VSOCK: u64 = 40;
/// Pushes input into the terminal of whoever started us.
const TIOCSTI: u64 = 0x5412;

fn seccomp() -> Value {
    let denied = |names: &[&str], errno: u32, args: Value| json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args });
    let equal = |index: u32, value: u64| json!([{ "index": index, "value": value, "op": "SCMP_CMP_EQ" }]);
    // The specification has the mask in `value` and what it must equal in `valueTwo`; libcontainer 0.7 reads them the other
    // way round. Where the two differ, both orders are given: the wrong one of them can never match.
    let masked = |index: u32, mask: u64, value: u64| json!([{ "index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" }]);
    let mut rules = vec![
        denied(DENIED, EPERM, json!([])),
        denied(&["clone3"], ENOSYS, json!([])),
        denied(&["unshare"], EPERM, masked(0, CLONE_NEWTIME, CLONE_NEWTIME)),
        denied(&["socket"], EPERM, equal(0, AF_VSOCK)),
        denied(&["ioctl"], EPERM, equal(1, TIOCSTI)),
    ];
    rules.extend(NAMESPACE_FLAGS.map(|flag| denied(&["clone", "unshare"], EPERM, masked(0, flag, flag))));
    for flag in WEAKENING_PERSONALITIES {
        let mask = flag | PERSONALITY_QUERY_BIT;
        rules.push(denied(&["personality"], EPERM, masked(0, mask, flag)));
        rules.push(denied(&["personality"], EPERM, masked(0, flag, mask)));
    }
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures(), "syscalls": rules })
}

/// Every way in which this machine's kernel can be called: an address family left out would be killed, one forgotten not filtered.
fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => &[],
    }
}

/// Files of the machine's `/etc` that programs need and that tell nothing of the machine's users or network.
const ETC_FILES: &[&str] = &[
    "debian_version",
    "host.conf",
    "ld.so.cache",
    "ld.so.conf",
    "locale.alias",
    "magic",
    "magic.mime",
    "mime.types",
    "os-release",
    "protocols",
    "redhat-release",
    "rpc",
    "services",
];
/// Folders, likewise; compilers and interpreters keep configuration there.
const ETC_DIRS: &[&str] = &[
    "alternatives",
    "ca-certificates",
    "crypto-policies",
    "fonts",
    "ld.so.conf.d",
    "maven",
    "perl",
    "pki",
    "sgml",
    "ssl",
    "texmf",
    "xml",
];
/// Folders by how their names begin: `java-17-openjdk`, `python3.13`.
const ETC_DIR_PREFIXES: [&str; 2] = ["java", "python"];

/// The folders of the machine's `/etc` that are bound read-only. Private keys in them stay unreadable: their owner is no
/// user of the container.
pub(super) fn etc_dirs() -> Vec<PathBuf> {
    let entries = fs::read_dir("/etc").into_iter().flatten().flatten();
    let wanted = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        ETC_DIRS.contains(&name.as_ref()) || ETC_DIR_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    });
    let mut dirs = wanted.map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink()).collect::<Vec<_>>();
    dirs.sort();
    dirs
}

/// Fills the container's `/etc`: copies of harmless files, and made-up ones where the real would tell who is on the machine.
pub(super) fn write_etc(etc: &Path) -> io::Result<()> {
    for name in ETC_FILES {
        let host = Path::new("/etc").join(name);
        if let Ok(bytes) = fs::read(&host) {
            write_public(&etc.join(name), &bytes)?;
        }
    }
    let made_up = [
        ("passwd", "root:x:0:0:root:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"),
        ("group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
        ("hosts", "127.0.0.1 localhost build\n::1 localhost build\n"),
        ("hostname", "build\n"),
        ("nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n"),
        ("timezone", "Etc/UTC\n"),
    ];
    for (name, text) in made_up {
        write_public(&etc.join(name), text.as_bytes())?;
    }
    symlink("/usr/share/zoneinfo/Etc/UTC", etc.join("localtime"))?;
    symlink("/proc/self/mounts", etc.join("mtab"))
}

fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}
