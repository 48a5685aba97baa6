//! A cluster on this machine for one test: started with `swell dev`, driven as a user drives it, gone without a trace at the end.

use std::{
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

/// The program under test.
pub const SWELL: &str = env!("CARGO_BIN_EXE_swell");

/// How long a build, a rollout or a change of state may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Whether this machine lets tests run builds in containers. In CI it must.
pub fn isolation_is_here() -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "CI must run as root: containers and control groups are tested");
    if !root {
        eprintln!("SKIPPED: this test needs root, for containers and control groups");
    }
    root
}

/// Under which conditions a cluster runs, where they are not the usual ones.
#[derive(Default)]
pub struct Conditions {
    /// Variables of `swell dev` and everything below it.
    pub env: Vec<(&'static str, String)>,
    /// Who runs it; root otherwise.
    pub user: Option<u32>,
    /// Disks of agents: an agent's name, and the size of the file system that holds all that it keeps.
    pub disks: Vec<(&'static str, &'static str)>,
}

/// `swell dev` with some agents, in a folder of its own.
pub struct Dev {
    pub folder: tempfile::TempDir,
    pub api: SocketAddr,
    pub gateway: SocketAddr,
    gateway_admin: SocketAddr,
    first_port: u16,
    _ports: nix::fcntl::Flock<std::fs::File>,
    agents: u16,
    conditions: Conditions,
    program: PathBuf,
    child: Option<Child>,
    runtime: tokio::runtime::Runtime,
}

/// A port that nothing listens on now.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Service ports of one test: a range that no other test holds, whichever process it runs in.
fn service_ports() -> (u16, nix::fcntl::Flock<std::fs::File>) {
    let folder = std::env::temp_dir().join("swell-test-ports");
    std::fs::create_dir_all(&folder).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        for slot in 0..14 {
            let file = std::fs::File::create(folder.join(slot.to_string())).unwrap();
            if let Ok(held) = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock) {
                return (10_000 + slot * 1_400, held);
            }
        }
        assert!(Instant::now() < deadline, "every range of test ports is held by another test");
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Dev {
    /// Starts a cluster with `agents` targets and waits until all of them are connected.
    pub fn start(agents: u16) -> Self {
        Self::start_under(agents, Conditions::default())
    }

    /// The same under other conditions.
    pub fn start_under(agents: u16, conditions: Conditions) -> Self {
        let folder = tempfile::Builder::new().prefix("swell-").tempdir().unwrap();
        open_to_others(folder.path());
        let mut program = PathBuf::from(SWELL);
        if let Some(user) = conditions.user {
            // The target folder may lie where an ordinary user cannot go.
            program = folder.path().join("swell");
            std::fs::hard_link(SWELL, &program).or_else(|_| std::fs::copy(SWELL, &program).map(drop)).unwrap();
            std::os::unix::fs::chown(folder.path(), Some(user), Some(user)).unwrap();
        }
        for (agent, size) in &conditions.disks {
            let disk = folder.path().join("data/agents").join(agent);
            std::fs::create_dir_all(&disk).unwrap();
            mount(&["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "tmpfs", &disk.to_string_lossy()]);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (api, gateway, gateway_admin) = (free_port(), free_port(), free_port());
        let (first_port, ports) = service_ports();
        let mut dev = Self {
            folder,
            api,
            gateway,
            gateway_admin,
            first_port,
            _ports: ports,
            agents,
            conditions,
            program,
            child: None,
            runtime,
        };
        dev.resume();
        dev.wait_until("every agent is connected", |dev| {
            let connected = dev.get("/v1/targets?limit=500")["items"]
                .as_array()
                .map_or(0, |targets| targets.iter().filter(|target| target["connected"] == true).count());
            connected == usize::from(agents)
        });
        dev
    }

    /// Starts `swell dev` (again) over what is there.
    pub fn resume(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("dev.log")).unwrap();
        let mut command = Command::new(&self.program);
        if let Some(user) = self.conditions.user {
            command.uid(user).gid(user).env("HOME", self.folder.path());
        }
        let child = command
            .envs(self.conditions.env.iter().map(|(name, value)| (name, value)))
            .args(["dev", "--agents", &self.agents.to_string(), "--first-port", &self.first_port.to_string()])
            .args(["--listen", &self.api.to_string(), "--gateway", &self.gateway.to_string()])
            .args(["--gateway-admin", &self.gateway_admin.to_string()])
            .args(["--data".as_ref(), self.data().as_os_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        self.wait_until("the server is ready", |dev| dev.try_get("/readyz").is_some());
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn token(&self, role: &str) -> String {
        std::fs::read_to_string(self.data().join("server/tokens").join(role)).unwrap().trim().to_owned()
    }

    /// The output of `swell`, as an admin.
    pub fn swell(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// `swell`, as an admin, in an empty home.
    pub fn command(&self) -> Command {
        let mut command = Command::new(SWELL);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.folder.path());
        command.env("SWELL_ADDR", format!("http://{}", self.api)).env("SWELL_TOKEN", self.token("admin"));
        command.stdin(Stdio::null()).current_dir(self.folder.path());
        command
    }

    /// `swell` must succeed; its standard output.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.swell(arguments);
        assert!(
            output.status.success(),
            "swell {} failed: {}{}",
            arguments.join(" "),
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// `swell` must end with `code`; everything it printed.
    #[track_caller]
    pub fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.swell(arguments);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "swell {}: {said}", arguments.join(" "));
        said
    }

    /// What the API answers, if it does.
    pub fn try_get(&self, path: &str) -> Option<Value> {
        let url = format!("http://{}{path}", self.api);
        let token = std::fs::read_to_string(self.data().join("server/tokens/admin")).unwrap_or_default();
        self.runtime.block_on(async {
            let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().ok()?;
            let answer = client.get(url).bearer_auth(token.trim()).send().await.ok()?;
            if !answer.status().is_success() {
                return None;
            }
            let body = answer.bytes().await.ok()?;
            Some(serde_json::from_slice(&body).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned())))
        })
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(value) = self.try_get(path) {
                return value;
            }
            assert!(Instant::now() < deadline, "GET {path} does not succeed\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits for a condition, with a deadline.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} until {what}\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the newest rollout of `pipeline` has ended, and returns it. `after` is the number of rollouts there were before.
    #[track_caller]
    pub fn ended_rollout(&self, pipeline: &str, after: usize) -> Value {
        let path = format!("/v1/rollouts?pipeline={pipeline}&limit=100");
        let mut last = Value::Null;
        self.wait_until(&format!("a rollout of {pipeline} has ended, beyond the {after} before; last seen: {last}"), |dev| {
            let rollouts = dev.get(&path);
            let items = rollouts["items"].as_array().unwrap();
            if items.len() <= after || items.iter().any(|rollout| rollout["ended"] != true) {
                return false;
            }
            last = items[0].clone();
            true
        });
        self.get(&format!("/v1/rollouts/{}", last["id"].as_str().unwrap()))
    }

    /// Waits until build `id` has ended, and returns it.
    #[track_caller]
    pub fn ended_build(&self, id: &str) -> Value {
        let mut last = Value::Null;
        self.wait_until(&format!("build {id} has ended"), |dev| {
            last = dev.get(&format!("/v1/builds/{id}"));
            last["ended"] == true
        });
        last
    }

    /// The newest build of `pipeline`, once there are more than `after`.
    #[track_caller]
    pub fn newest_build(&self, pipeline: &str, after: usize) -> String {
        let mut id = String::new();
        self.wait_until(&format!("{pipeline} has more than {after} builds"), |dev| {
            let builds = dev.get(&format!("/v1/builds?pipeline={pipeline}&limit=100"));
            let items = builds["items"].as_array().unwrap();
            if items.len() > after {
                id = items[0]["id"].as_str().unwrap().to_owned();
            }
            items.len() > after
        });
        id
    }

    /// The numbers of the processes whose command line has every one of `words`.
    pub fn processes(&self, words: &[&str]) -> Vec<i32> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if words.iter().all(|word| line.contains(word)) && pid != std::process::id() as i32 {
                found.push(pid);
            }
        }
        found
    }

    /// The number of the process that plays `role` in this cluster; `name` tells agents apart.
    pub fn role(&self, role: &str, name: &str) -> Option<i32> {
        let data = self.data().join(if role == "agent" { format!("agents/{name}") } else { role.to_owned() });
        let exact = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
            words.nth(1).as_deref() == Some(role)
        };
        self.processes(&[&data.to_string_lossy()]).into_iter().find(exact)
    }

    pub fn kill(pid: i32) {
        // It may have ended by itself in this very moment.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).ok();
    }

    /// Everything that the cluster's processes logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("dev.log")).unwrap_or_default()
    }

    /// Gives an agent's disk another size.
    pub fn resize_disk(&self, agent: &str, size: &str) {
        let disk = self.data().join("agents").join(agent);
        mount(&["-o", &format!("remount,size={size}"), &disk.to_string_lossy()]);
    }

    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        format!("--- the last of the log ---\n{}", lines[lines.len().saturating_sub(60)..].join("\n"))
    }

    /// Stops `swell dev` as Ctrl-C does.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM).ok();
        let deadline = Instant::now() + Duration::from_secs(60);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                child.kill().ok();
                child.wait().ok();
                panic!("swell dev does not stop\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn disks(&self) -> impl Iterator<Item = PathBuf> {
        let agents = self.data().join("agents");
        self.conditions.disks.iter().map(move |(agent, _)| agents.join(agent))
    }

    /// What a stopped cluster left behind: processes, mounts and control groups that name its folder or its targets.
    pub fn left_behind(&self) -> Vec<String> {
        let data = self.data().to_string_lossy().into_owned();
        let mut left: Vec<String> = self.processes(&[&data]).into_iter().map(|pid| format!("process {pid}")).collect();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let disks: Vec<PathBuf> = self.disks().collect();
        let is_disk = |line: &&str| disks.iter().any(|disk| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == disk));
        let of_ours = mounts.lines().filter(|line| line.contains(&data) && !is_disk(line));
        left.extend(of_ours.map(|line| format!("mount {line}")));
        left
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        if let Some(mut child) = self.child.take() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM).ok();
            let deadline = Instant::now() + Duration::from_secs(60);
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    child.kill().ok();
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        for pid in self.processes(&[&self.data().to_string_lossy()]) {
            Self::kill(pid);
        }
        for disk in self.disks() {
            Command::new("umount").arg("--lazy").arg(disk).output().ok();
        }
    }
}

/// A git repository of a test, with the files of an example.
pub struct Repo {
    pub path: PathBuf,
}

impl Repo {
    /// A repository in `folder` with the files of `source`, committed.
    pub fn of(folder: &Path, name: &str, source: &Path) -> Self {
        let path = folder.join(name);
        copy(source, &path);
        let repo = Self { path };
        repo.git(&["init", "--quiet", "--initial-branch=main"]);
        repo.commit("begin");
        repo
    }

    pub fn write(&self, file: &str, content: &str) -> &Self {
        let path = self.path.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "-m", message]);
        self.git(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// Pushes `main` to the repository `name` that `dev` hosts; what git said.
    #[track_caller]
    pub fn push(&self, dev: &Dev, name: &str) -> String {
        let url = format!("http://ada:{}@{}/git/{name}", dev.token("developer"), dev.api);
        self.git(&["push", &url, "main"])
    }

    /// Pushes again until the server takes it, as a person would whose push broke off.
    #[track_caller]
    pub fn push_until_taken(&self, dev: &Dev, name: &str) {
        let url = format!("http://ada:{}@{}/git/{name}", dev.token("developer"), dev.api);
        let mut said = String::new();
        dev.wait_until(&format!("a push is taken; the last one said: {said}"), |_| {
            let output = git(&self.path, &["push", &url, "main"]);
            said = text(&output.stderr);
            output.status.success()
        });
    }

    #[track_caller]
    pub fn git(&self, arguments: &[&str]) -> String {
        let output = git(&self.path, arguments);
        assert!(output.status.success(), "git {}: {}{}", arguments.join(" "), text(&output.stdout), text(&output.stderr));
        text(&output.stdout) + &text(&output.stderr)
    }
}

/// git without the user's own settings.
pub fn git(folder: &Path, arguments: &[&str]) -> Output {
    Command::new("git")
        .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"])
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .output()
        .unwrap()
}

/// The folder of an example of this repository.
pub fn example(name: &str) -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("examples").join(name)
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to)
        } else {
            std::fs::copy(entry.path(), to).map(|_| ()).unwrap()
        }
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn mount(arguments: &[&str]) {
    let output = Command::new("mount").args(arguments).output().unwrap();
    assert!(output.status.success(), "mount {}: {}", arguments.join(" "), text(&output.stderr));
}

/// Services run as users of their own: they must be able to pass through the folders above theirs.
fn open_to_others(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}
