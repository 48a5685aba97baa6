//! Processes that a benchmark starts and ends, the folders they write to and the ports they listen on. Knows no program in particular.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::{prctl, signal::Signal, statfs},
    unistd::Pid,
};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// How long a process may take to listen, and to end when it is asked to.
const START_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Between two looks whether a process listens.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Clock ticks of /proc: `USER_HZ` of Linux on all that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Bytes of a failed process's output that are shown.
const TAIL_BYTES: usize = 2000;

/// A peer's program; else an error that says how to install it.
pub fn installed(program: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    // Where Debian keeps daemons, which is not on every user's path.
    let folders = path.split(':').chain(["/usr/sbin", "/usr/local/sbin", "/sbin"]);
    let found = folders.map(|folder| Path::new(folder).join(program)).find(|path| path.is_file());
    found.with_context(|| format!("`{program}` is not installed: `apt-get install {package}`"))
}

/// The first line that a program prints about its version, without its name.
pub async fn version(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().await;
    let output = output.with_context(|| format!("failed to run {}", program.display()))?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&text);
    let is_version = |word: &&str| word.trim_start_matches(|c: char| !c.is_ascii_digit()).contains('.');
    let word = text.lines().next().unwrap_or_default().split_whitespace().find(is_version);
    let word = word.with_context(|| format!("{} does not tell its version", program.display()))?;
    Ok(word.trim_start_matches(|c: char| !c.is_ascii_digit()).to_owned())
}

/// A folder that is removed when it is dropped. Others may pass through it, as containers and daemons must.
pub fn folder() -> Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::Builder::new().prefix("swell-bench-").tempdir().context("failed to create a temporary folder")?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// Refuses a folder in memory, where fsync costs nothing.
pub fn require_disk(folder: &Path) -> Result<()> {
    let kind = statfs::statfs(folder).with_context(|| format!("failed to look at {}", folder.display()))?.filesystem_type();
    ensure!(kind != statfs::TMPFS_MAGIC, "{} is in memory; set TMPDIR to a folder on a disk", folder.display());
    Ok(())
}

/// A loopback address that nothing listens on now.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to find a free port")?;
    Ok(listener.local_addr()?)
}

/// A process with its output in a file. Killed when dropped, and by the kernel should this program die.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints is added to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("failed to open {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).kill_on_drop(true);
        // SAFETY: prctl is async-signal-safe and only sets what the kernel does when the parent ends.
        unsafe {
            command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
        }
        let child = command.spawn().with_context(|| format!("failed to start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Id of the process, while it runs.
    pub fn id(&self) -> Result<u32> {
        self.child.id().with_context(|| format!("{} has ended", self.name))
    }

    /// Waits until the process accepts connections at `address`.
    pub async fn listens(&mut self, address: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + START_WITHIN;
        while TcpStream::connect(address).await.is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}): {}", self.name, self.tail());
            }
            ensure!(
                Instant::now() < deadline,
                "{} does not listen at {address} after {START_WITHIN:?}: {}",
                self.name,
                self.tail()
            );
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Asks the process to end, and kills it when it does not.
    pub async fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        if timeout(STOP_WITHIN, self.child.wait()).await.is_err() {
            eprintln!("{} does not end within {STOP_WITHIN:?} and is killed", self.name);
            self.child.kill().await.with_context(|| format!("failed to kill {}", self.name))?;
        }
        Ok(())
    }

    /// Kills the process.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("failed to kill {}", self.name))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.id()?)?);
        nix::sys::signal::kill(pid, signal).with_context(|| format!("failed to signal {}", self.name))
    }

    /// The end of what the process printed.
    pub fn tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(TAIL_BYTES)..]).into_owned()
    }
}

/// Memory and processor time of a process, as /proc shows them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Resident memory in bytes, files mapped included.
    pub resident: f64,
    /// The part of it that belongs to no file: heap and stacks.
    pub anonymous: f64,
    /// Processor time since the start, user and system, in seconds.
    pub cpu_seconds: f64,
}

impl Usage {
    /// Of the process `id`, now.
    pub fn of(id: u32) -> Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{id}/{name}");
            fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))
        };
        let status = read("status")?;
        let bytes = |field: &str| {
            let kib: Option<f64> =
                status.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok());
            kib.map(|kib| kib * 1024.0).with_context(|| format!("no {field} in /proc/{id}/status"))
        };
        let stat = read("stat")?;
        // Fields 14 and 15, counted after the name, which may contain anything (proc(5)).
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
        let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Ok(Self { resident: bytes("VmRSS:")?, anonymous: bytes("RssAnon:")?, cpu_seconds: ticks as f64 / TICKS_PER_SECOND })
    }
}

#[cfg(test)]
mod tests {
    use super::Usage;

    #[test]
    fn usage_of_this_process_is_known() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.resident >= usage.anonymous && usage.anonymous > 0.0 && usage.cpu_seconds >= 0.0, "{usage:?}");
    }
}
