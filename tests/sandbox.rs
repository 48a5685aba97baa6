//! The sandbox and the shim from outside: real containers, real processes, real kills. Needs root, and says so where it is not.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use swell_model::units::Millis;
use swell_sandbox::{
    cgroup::{Cgroup, Limits},
    isolation::{self, Level},
    runtime::{self, ShimHandle, ShimRuntime, ShimStatus},
    shim::{
        Bind, CHILD_PID_FILE, ContainerSpec, ExitRecord, Isolation, Outcome, ProcessSpec, SHIM_PID_FILE, ShimSpec, StopPolicy,
        read_process, reap,
    },
    spool::{OutputPolicy, SpoolReader, Stream},
};

const SWELL: &str = env!("CARGO_BIN_EXE_swell");
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder for one shim, removed with everything in it at the end, also of a failed test.
struct Place {
    root: tempfile::TempDir,
    cgroup: String,
}

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("workspace")).unwrap();
        Self { root, cgroup: format!("/groundswell/tests/{}-{number}", std::process::id()) }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("shim")
    }

    fn workspace(&self) -> PathBuf {
        self.root.path().join("workspace")
    }

    fn spec(&self, kind: Isolation, script: &str) -> ShimSpec {
        let cwd = if matches!(kind, Isolation::Container(_)) { "/workspace" } else { "/" };
        ShimSpec {
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: BTreeMap::new(),
            cwd: cwd.into(),
            kind,
            limits: Limits::default(),
            time_limit: Some(Millis::from_secs(60)),
            stop: StopPolicy { signal: "TERM".into(), timeout: Millis::from_secs(20) },
            output: OutputPolicy::BUILD,
            cgroup: self.cgroup.clone(),
        }
    }

    fn container(&self, script: &str) -> ShimSpec {
        self.spec(Isolation::Container(ContainerSpec::host(self.workspace())), script)
    }

    fn process(&self, user: Option<&str>, script: &str) -> ShimSpec {
        self.spec(Isolation::Process(ProcessSpec { user: user.map(str::to_owned) }), script)
    }

    async fn start(&self, spec: &ShimSpec) -> ShimHandle {
        ShimRuntime::with_executable(SWELL).start(&self.dir(), spec).await.unwrap()
    }

    async fn run(&self, spec: &ShimSpec) -> ExitRecord {
        let shim = self.start(spec).await;
        let record = tokio::time::timeout(PATIENCE, shim.wait()).await.unwrap().unwrap().unwrap();
        self.assert_nothing_left();
        record
    }

    /// What was printed on one stream.
    fn printed(&self, stream: Stream) -> String {
        let mut reader = SpoolReader::open(&self.dir(), 0);
        let mut bytes = Vec::new();
        while let Some(frame) = reader.next_frame().unwrap() {
            if frame.stream == stream {
                bytes.extend(frame.bytes);
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    fn stdout(&self) -> String {
        self.printed(Stream::Stdout)
    }

    /// Waits until the command has printed `text`.
    async fn wait_for(&self, text: &str) {
        eventually(text, || self.stdout().contains(text)).await;
    }

    fn assert_nothing_left(&self) {
        assert!(!Cgroup::new(&self.cgroup).unwrap().exists(), "control group left");
        let root = self.root.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(root), "mounts left: {mounts}");
        let shim = runtime_process(&self.dir(), "shim.pid");
        assert!(shim.is_none_or(|pid| !is_alive(pid)), "shim left");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = reap(&self.dir()) {
            eprintln!("cleaning up after a test: {error}");
        }
    }
}

fn runtime_process(dir: &Path, file: &str) -> Option<i32> {
    let text = fs::read_to_string(dir.join(file)).ok()?;
    let value: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(value["pid"].as_i64()? as i32)
}

fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Processes whose command line contains `mark`.
fn processes_with(mark: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(mark) && is_alive(*pid)
    })
    .collect()
}

/// Whether containers can be made here; says so loudly where not, and fails in CI.
fn permitted() -> bool {
    let report = isolation::probe();
    let Level::None { why } = report.level else { return true };
    eprintln!("SKIPPED: this machine does not allow isolation: {why}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped in CI: {:#?}", report.checks);
    false
}

macro_rules! needs_isolation {
    () => {
        if !permitted() {
            return;
        }
    };
}

#[tokio::test]
async fn a_container_compiles_and_runs_a_program() {
    needs_isolation!();
    let place = Place::new();
    let hello = "#include <stdio.h>\nint main(void) { puts(\"hello\"); fputs(\"oops\\n\", stderr); return 3; }\n";
    fs::write(place.workspace().join("hello.c"), hello).unwrap();
    let mut spec = place.container("cc -o hello hello.c && ./hello");
    spec.limits = Limits { memory_bytes: Some(512 << 20), cpu_cores: Some(2.0), pids: Some(100), nofile: Some(256) };
    let record = place.run(&spec).await;
    assert_eq!(record.outcome, Outcome::Exited(3), "{}", place.printed(Stream::Stderr));
    assert_eq!((place.stdout().as_str(), place.printed(Stream::Stderr).as_str()), ("hello\n", "oops\n"));
    assert!(record.memory_peak_bytes.unwrap() > 1 << 20 && record.cpu_time.unwrap().0 > 0, "{record:?}");
    assert!(!record.oom_killed && !record.timed_out && !record.stopped, "{record:?}");
    assert!(place.workspace().join("hello").exists());
}

#[tokio::test]
async fn the_sandbox_is_closed() {
    needs_isolation!();
    let place = Place::new();
    let secret = place.root.path().join("secret");
    fs::write(&secret, "told").unwrap();
    fs::write("/tmp/groundswell-host-file", "x").unwrap();
    let script = r#"
        echo interfaces: $(tail -n +3 /proc/net/dev | cut -d: -f1)
        grep -E '^(CapEff|CapPrm|CapBnd|CapInh|CapAmb|NoNewPrivs|Seccomp|Groups):' /proc/self/status
        echo uid: $(id -u) host: $(hostname) map: $(cat /proc/self/uid_map)
        for path in /root /home /sys /opt /srv /work /mnt; do [ -e $path ] && echo visible: $path; done
        ls -A /tmp
        [ "$(ls -A /var)" = tmp ] && [ -z "$(ls -A /var/tmp)" ] || echo visible: /var
        for path in /usr/x /etc/x /x /bin/x /proc/sys/kernel/hostname; do (echo > $path) 2>/dev/null && echo written: $path; done
        [ -s /proc/kcore ] && echo kcore; [ -s /proc/keys ] && echo keys
        ls /dev | sort | tr '\n' ' '; echo
        unshare -U true 2>&1 && echo namespace made
        unshare -T true 2>&1 && echo time namespace made
        setarch -R true 2>&1 && echo randomisation off
        mount -t tmpfs t /tmp 2>/dev/null && echo mounted
        cat /run/secrets/token; echo
        (echo x > /run/secrets/token) 2>/dev/null && echo written: token
        echo pid $$ of $(ls -d /proc/[0-9]* | wc -l)
        echo done
    "#;
    let mut spec = place.container(script);
    let Isolation::Container(container) = &mut spec.kind else { unreachable!() };
    container.binds.push(Bind {
        source: secret,
        destination: "/run/secrets/token".into(),
        read_only: true,
        owned_by_container: true,
    });
    let record = place.run(&spec).await;
    fs::remove_file("/tmp/groundswell-host-file").unwrap();
    let printed = place.stdout();
    assert_eq!(record.outcome, Outcome::Exited(0), "{printed}\n{}", place.printed(Stream::Stderr));
    let lines = printed.lines().map(str::trim).collect::<Vec<_>>();
    let has = |line: &str| assert!(lines.contains(&line), "no `{line}` in:\n{printed}");
    has("interfaces: lo");
    for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
        has(&format!("{set}:\t0000000000000000"));
    }
    has("NoNewPrivs:\t1");
    has("Seccomp:\t2");
    has("Groups:");
    has("uid: 0 host: build map: 0 100000 65536");
    has("unshare: unshare failed: Operation not permitted");
    assert!(printed.contains("personality"), "randomisation was not refused by the filter: {printed}");
    has("told");
    has("done");
    for bad in ["visible", "written", "kcore", "keys", "made", "off", "mounted", "groundswell-host-file"] {
        assert!(!printed.contains(bad), "`{bad}` in:\n{printed}");
    }
    let devices = lines.iter().find(|line| line.contains("urandom")).unwrap();
    assert!(["sda", "vda", "mem", "kmsg", "kvm", "loop0"].iter().all(|name| !devices.contains(name)), "{devices}");
}

#[tokio::test]
async fn root_inside_is_nobody_outside() {
    needs_isolation!();
    let place = Place::new();
    fs::write(place.workspace().join("given"), "x").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", place.workspace().join("link")).unwrap();
    let record = place.run(&place.container("id -u; rm given && touch made && [ -O made ] && cat /proc/self/uid_map")).await;
    assert_eq!(record.outcome, Outcome::Exited(0), "{}", place.printed(Stream::Stderr));
    let made = std::os::unix::fs::MetadataExt::uid(&fs::metadata(place.workspace().join("made")).unwrap());
    assert_eq!(made, ContainerSpec::ID_BASE);
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata("/etc/passwd").unwrap()), 0, "a link was followed");
}

#[tokio::test]
async fn the_loopback_can_be_used_and_nothing_else() {
    needs_isolation!();
    let place = Place::new();
    let script = r#"perl -MIO::Socket::INET -e '
        my $s = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1") or die "listen: $!";
        my $c = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => $s->sockport) or die "connect: $!";
        print "loopback\n";
        IO::Socket::INET->new(PeerAddr => "192.0.2.1", PeerPort => 80, Timeout => 3) and print "outside\n";'"#;
    place.run(&place.container(script)).await;
    assert_eq!(place.stdout(), "loopback\n", "{}", place.printed(Stream::Stderr));
}

#[tokio::test]
async fn an_out_of_memory_kill_is_told_with_its_peak() {
    needs_isolation!();
    for kind in ["container", "process"] {
        let place = Place::new();
        let script = "perl -e 'my $x = \"x\" x (300 << 20); print length $x'";
        let mut spec = if kind == "container" { place.container(script) } else { place.process(None, script) };
        spec.limits.memory_bytes = Some(64 << 20);
        let record = place.run(&spec).await;
        assert!(record.oom_killed, "{kind}: {record:?}");
        assert!(!record.succeeded() && place.stdout().is_empty(), "{kind}: {record:?}");
        let peak = record.memory_peak_bytes.unwrap();
        assert!((48 << 20..=64 << 20).contains(&peak), "{kind}: {peak}");
    }
}

#[tokio::test]
async fn a_fork_bomb_is_bounded_and_removed() {
    needs_isolation!();
    let place = Place::new();
    let mut spec = place.container("bomb() { bomb | bomb & }; bomb; while :; do :; done");
    spec.limits.pids = Some(40);
    spec.time_limit = Some(Millis::from_secs(3));
    let record = place.run(&spec).await;
    assert!(record.timed_out, "{record:?}");
    assert!(place.printed(Stream::Stderr).contains("ork"), "the limit on processes was never met");
}

#[tokio::test]
async fn the_time_limit_kills_daemonised_children_too() {
    needs_isolation!();
    for kind in ["container", "process", "bare"] {
        let place = Place::new();
        let mark = format!("31{}", 1_000_000 + place.root.path().as_os_str().len() as u32 * 7 + std::process::id());
        // Double fork and a session of its own, output closed: nothing holds it to its starter.
        let script = format!("(setsid sh -c 'sleep {mark} >/dev/null 2>&1 &' &) ; echo up; sleep 600");
        let mut spec = match kind {
            "container" => place.container(&script),
            "process" => place.process(None, &script),
            _ => place.spec(Isolation::Bare, &script),
        };
        spec.time_limit = Some(Millis(1500));
        let shim = place.start(&spec).await;
        eventually("the daemon runs", || !processes_with(&mark).is_empty()).await;
        let record = shim.wait().await.unwrap().unwrap();
        assert!(record.timed_out && !record.stopped, "{kind}: {record:?}");
        assert!(place.printed(Stream::Note).contains("time limit of 1s500ms"), "{kind}");
        assert_eq!(processes_with(&mark), [] as [i32; 0], "{kind}");
        place.assert_nothing_left();
    }
}

#[tokio::test]
async fn what_a_command_leaves_running_ends_with_it() {
    needs_isolation!();
    for kind in ["container", "process", "bare"] {
        let place = Place::new();
        let mark = format!("32{}", 2_000_000 + std::process::id());
        let script = format!("setsid sleep {mark} & sleep 0.2; exit 5");
        let record = match kind {
            "container" => place.run(&place.container(&script)).await,
            "process" => place.run(&place.process(None, &script)).await,
            _ => place.run(&place.spec(Isolation::Bare, &script)).await,
        };
        assert_eq!(record.outcome, Outcome::Exited(5), "{kind}");
        assert_eq!(processes_with(&mark), [] as [i32; 0], "{kind}");
    }
}

#[tokio::test]
async fn a_polite_stop_lets_the_command_finish_and_a_deaf_one_is_killed() {
    needs_isolation!();
    for kind in ["container", "process", "bare"] {
        let place = Place::new();
        let script = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done";
        let spec = match kind {
            "container" => place.container(script),
            "process" => place.process(None, script),
            _ => place.spec(Isolation::Bare, script),
        };
        let shim = place.start(&spec).await;
        place.wait_for("up").await;
        shim.stop().unwrap();
        let record = shim.wait().await.unwrap().unwrap();
        assert_eq!((record.outcome, record.stopped), (Outcome::Exited(7), true), "{kind}");
        assert_eq!(place.stdout(), "up\nbye\n", "{kind}");
        shim.stop().unwrap();
    }
    let place = Place::new();
    let mut spec = place.process(None, "trap '' TERM; echo up; while :; do sleep 0.05; done");
    spec.stop.timeout = Millis(300);
    let shim = place.start(&spec).await;
    place.wait_for("up").await;
    shim.stop().unwrap();
    let record = shim.wait().await.unwrap().unwrap();
    assert_eq!((record.outcome, record.stopped, record.timed_out), (Outcome::Signaled(9), true, false));
}

#[tokio::test]
async fn a_kill_is_immediate() {
    needs_isolation!();
    let place = Place::new();
    let shim = place.start(&place.container("trap '' TERM; echo up; sleep 600")).await;
    place.wait_for("up").await;
    shim.kill().unwrap();
    let record = shim.wait().await.unwrap().unwrap();
    assert_eq!((record.outcome, record.stopped), (Outcome::Signaled(9), true));
    place.assert_nothing_left();
}

#[tokio::test]
async fn a_killed_shim_leaves_nothing_after_reap() {
    needs_isolation!();
    for kind in ["container", "process", "bare"] {
        let place = Place::new();
        let mark = format!("33{}", 3_000_000 + std::process::id());
        let script = format!("(setsid sleep {mark} >/dev/null 2>&1 &); echo up; sleep 600");
        let spec = match kind {
            "container" => place.container(&script),
            "process" => place.process(None, &script),
            _ => place.spec(Isolation::Bare, &script),
        };
        let shim = place.start(&spec).await;
        place.wait_for("up").await;
        eventually("the daemon runs", || !processes_with(&mark).is_empty()).await;
        let process = read_process(&place.dir(), SHIM_PID_FILE).unwrap().unwrap();
        kill(Pid::from_raw(process.pid), Signal::SIGKILL).unwrap();
        eventually("vanished", || !process.is_alive()).await;
        assert_eq!(runtime::status(&place.dir()).await.unwrap(), ShimStatus::Vanished, "{kind}");
        assert_eq!(runtime::adopt(&place.dir()).await.unwrap(), None, "{kind}");
        for _ in 0..2 {
            runtime::clear(&place.dir()).await.unwrap();
            assert_eq!(processes_with(&mark), [] as [i32; 0], "{kind}");
            place.assert_nothing_left();
        }
        assert_eq!(place.stdout(), "up\n", "{kind}: what was printed is still there");
        assert_eq!(shim.wait().await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_shim_killed_at_any_step_leaves_nothing_after_reap() {
    needs_isolation!();
    let points = [
        "before_pid",
        "before_spool",
        "before_child",
        "after_create",
        "after_child",
        "after_start",
        "before_kill",
        "before_exit_record",
        "after_exit_record",
        "before_cleanup",
        "after_cleanup",
    ];
    for kind in ["container", "process", "bare"] {
        for point in points {
            if point == "after_create" && kind != "container" {
                continue;
            }
            let place = Place::new();
            let spec = match kind {
                "container" => place.container("echo up"),
                "process" => place.process(None, "echo up"),
                _ => place.spec(Isolation::Bare, "echo up"),
            };
            let dir = place.dir();
            fs::create_dir(&dir).unwrap();
            swell_sandbox::shim::write_spec(&dir, &spec).unwrap();
            let mut child = Command::new(SWELL)
                .args(["shim".as_ref(), dir.as_os_str()])
                .env("SWELL_CRASH_AT", format!("shim::{point}"))
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let status = child.wait().unwrap();
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{kind} {point}");
            runtime::clear(&dir).await.unwrap();
            place.assert_nothing_left();
            assert!(!dir.join("state").exists() && !dir.join("bundle").exists(), "{kind} {point}");
            let status = runtime::status(&dir).await.unwrap();
            let told = match point {
                "before_pid" => status == ShimStatus::NotStarted,
                "after_exit_record" | "before_cleanup" | "after_cleanup" => matches!(status, ShimStatus::Exited(_)),
                _ => status == ShimStatus::Vanished,
            };
            assert!(told, "{kind} {point}: {status:?}");
        }
    }
}

#[tokio::test]
async fn a_shim_outlives_its_parent_and_is_adopted() {
    needs_isolation!();
    let place = Place::new();
    let dir = place.dir();
    fs::create_dir(&dir).unwrap();
    let spec = place.process(None, "echo up; while [ ! -e /proc/self/nothing ]; do sleep 0.05; done");
    swell_sandbox::shim::write_spec(&dir, &spec).unwrap();
    // The parent is killed with its whole process group, as a terminal or a supervisor would.
    let script = format!("'{SWELL}' shim '{}' & wait", dir.display());
    let mut parent = Command::new("setsid").args(["sh", "-c", &script]).stdout(Stdio::null()).spawn().unwrap();
    place.wait_for("up").await;
    nix::sys::signal::killpg(Pid::from_raw(parent.id() as i32), Signal::SIGKILL).unwrap();
    parent.wait().unwrap();
    let shim = runtime::adopt(&dir).await.unwrap().unwrap();
    let command = read_process(&dir, CHILD_PID_FILE).unwrap().unwrap();
    assert!(command.is_alive());
    // A second shim in the same folder is refused, and harms nothing.
    let second = Command::new(SWELL).args(["shim".as_ref(), dir.as_os_str()]).output().unwrap();
    assert!(!second.status.success() && String::from_utf8_lossy(&second.stdout).contains("another shim runs"));
    assert!(command.is_alive());
    shim.stop().unwrap();
    let record = shim.wait().await.unwrap().unwrap();
    assert!(record.stopped && record.outcome == Outcome::Signaled(15), "{record:?}");
    place.assert_nothing_left();
    let third = Command::new(SWELL).args(["shim".as_ref(), dir.as_os_str()]).output().unwrap();
    assert!(String::from_utf8_lossy(&third.stdout).contains("was used before"));
}

/// A small disk of its own, unmounted at the end.
struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

#[tokio::test]
async fn how_a_command_ended_is_kept_although_it_filled_the_disk() {
    needs_isolation!();
    let place = Place::new();
    let disk = place.workspace();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&disk).status().unwrap();
    assert!(mounted.success());
    let disk = SmallDisk(disk);
    let dir = disk.0.join("shim");
    let fill = format!("head -c 10m /dev/zero > '{}'; exit 3", disk.0.join("fill").display());
    let shim = ShimRuntime::with_executable(SWELL).start(&dir, &place.process(None, &fill)).await.unwrap();
    let record = tokio::time::timeout(PATIENCE, shim.wait()).await.unwrap().unwrap();
    assert_eq!(record.map(|record| record.outcome), Some(Outcome::Exited(3)));
    assert!(runtime::is_disk_full(&dir));
    drop(disk);
    place.assert_nothing_left();
}

#[tokio::test]
async fn an_instance_runs_as_its_user_within_its_limits() {
    needs_isolation!();
    let place = Place::new();
    let script = "id -un; id -G; ulimit -n; echo $SECRET; env | sort | cut -d= -f1 | tr '\\n' ' '; echo; \
                  grep NoNewPrivs /proc/self/status; cat /proc/self/cgroup; pwd; echo up; sleep 600";
    let mut spec = place.process(Some("nobody"), script);
    spec.env.insert("SECRET".into(), "s3".into());
    spec.cwd = "/usr".into();
    spec.limits = Limits { memory_bytes: Some(64 << 20), cpu_cores: Some(0.5), pids: Some(20), nofile: Some(99) };
    spec.output = OutputPolicy::Rotate { file_bytes: 64 << 10 };
    let shim = place.start(&spec).await;
    place.wait_for("up").await;
    let printed = place.stdout();
    let lines = printed.lines().collect::<Vec<_>>();
    assert_eq!(&lines[..4], ["nobody", "65534", "99", "s3"], "{printed}");
    assert!(lines[4].starts_with("HOME LOGNAME PATH PWD SECRET") && !lines[4].contains("CARGO"), "{printed}");
    assert!(lines.contains(&"NoNewPrivs:\t1") && lines.contains(&"/usr"), "{printed}");
    assert!(printed.contains(&place.cgroup), "{printed}");
    if Path::new("/sys/fs/cgroup/pids").exists() {
        let pids = fs::read_to_string(format!("/sys/fs/cgroup/pids{}/pids.max", place.cgroup)).unwrap();
        let quota = fs::read_to_string(format!("/sys/fs/cgroup/cpu{}/cpu.cfs_quota_us", place.cgroup)).unwrap();
        assert_eq!((pids.trim(), quota.trim()), ("20", "50000"));
    }
    let adopted = runtime::adopt(&place.dir()).await.unwrap().unwrap();
    assert_eq!(adopted, shim);
    adopted.kill().unwrap();
    assert_eq!(shim.wait().await.unwrap().unwrap().outcome, Outcome::Signaled(9));
    place.assert_nothing_left();
}

#[tokio::test]
async fn what_runs_already_is_neither_replaced_nor_harmed() {
    needs_isolation!();
    let place = Place::new();
    let shim = place.start(&place.process(None, "echo up; sleep 600")).await;
    place.wait_for("up").await;
    let runtime = ShimRuntime::with_executable(SWELL);
    let same_folder = runtime.start(&place.dir(), &place.process(None, "true")).await;
    assert!(matches!(same_folder, Err(runtime::RuntimeError::Used(_))), "{same_folder:?}");
    // Another folder, by mistake the same control group.
    let other = place.root.path().join("other");
    let record = runtime.start(&other, &place.process(None, "true")).await.unwrap().wait().await.unwrap().unwrap();
    let Outcome::Failed(failure) = record.outcome else { panic!("{record:?}") };
    assert!(failure.why.contains("in use"), "{failure:?}");
    runtime::clear(&other).await.unwrap();
    assert!(read_process(&place.dir(), CHILD_PID_FILE).unwrap().unwrap().is_alive());
    shim.kill().unwrap();
    shim.wait().await.unwrap();
    place.assert_nothing_left();
}

#[tokio::test]
async fn what_cannot_start_says_why_and_what_to_do() {
    needs_isolation!();
    type MakeSpec = fn(&Place) -> ShimSpec;
    let cases: [(&str, MakeSpec, &str); 5] = [
        (
            "no such command in a container",
            |place| with(place.container(""), |s| s.command = vec!["no-such-tool".into()]),
            "not found",
        ),
        ("no such command", |place| with(place.process(None, ""), |s| s.command = vec!["no-such-tool".into()]), "not in PATH"),
        ("no such user", |place| place.process(Some("no-such-user"), "true"), "no such user"),
        (
            "no such folder",
            |place| with(place.process(None, "true"), |s| s.cwd = "/no/such".into()),
            "working directory /no/such",
        ),
        (
            "no such source",
            |place| place.spec(Isolation::Container(ContainerSpec::host("/no/such/workspace")), "true"),
            "/no/such/workspace",
        ),
    ];
    for (what, spec, expected) in cases {
        let place = Place::new();
        let record = place.run(&spec(&place)).await;
        let Outcome::Failed(failure) = record.outcome else { panic!("{what}: {record:?}") };
        assert!(failure.why.contains(expected) && !failure.way_out.is_empty(), "{what}: {failure:?}");
    }
}

fn with(mut spec: ShimSpec, change: impl FnOnce(&mut ShimSpec)) -> ShimSpec {
    change(&mut spec);
    spec
}

#[tokio::test]
async fn endless_output_is_bounded_and_counted() {
    needs_isolation!();
    let place = Place::new();
    let mut spec = place.container("head -c 3000000 /dev/zero | tr '\\0' x");
    spec.output = OutputPolicy::Head { limit_bytes: 1_000_000 };
    let record = place.run(&spec).await;
    assert_eq!((record.outcome, record.output_bytes), (Outcome::Exited(0), 3_000_000));
    assert_eq!(place.stdout().len() as u64 + record.truncated_bytes, 3_000_000);
    assert!(fs::metadata(place.dir().join("spool")).unwrap().len() < 1_001_000);
    assert!(place.printed(Stream::Note).contains("output limit"));
}
