//! The cluster of the demonstration: `swell dev` as a child process, and the little that is needed to drive it.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// How long a build or a rollout may take before the demonstration gives up.
const PATIENCE: Duration = Duration::from_secs(180);

/// A running `swell dev`.
pub struct Cluster {
    program: PathBuf,
    pub folder: PathBuf,
    pub api: SocketAddr,
    pub gateway: SocketAddr,
    child: Option<Child>,
}

impl Cluster {
    /// Starts it in `folder`, which is emptied first. The gateway has the port 80 above the API's.
    pub fn start(program: &Path, folder: &Path, port: u16, agents: u16) -> Result<Self> {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let (api, gateway, admin) = (at(port), at(port + 80), at(port + 81));
        for address in [api, gateway, admin] {
            if TcpListener::bind(address).is_err() {
                bail!(
                    "port {} is taken by another program: stop it (`ss -ltnp 'sport = :{}'` names it), or choose others: `cargo xtask demo --port N` uses N, N+80 and N+81",
                    address.port(),
                    address.port()
                );
            }
        }
        if folder.exists() {
            std::fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let log = File::create(folder.join("swell-dev.log")).context("cannot write the log")?;
        let child = Command::new(program)
            .args(["dev", "--agents", &agents.to_string(), "--listen", &api.to_string(), "--gateway", &gateway.to_string()])
            .args(["--gateway-admin", &admin.to_string()])
            .args(["--data".as_ref(), folder.join("data").as_os_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("`swell dev` cannot be started")?;
        let mut cluster = Self { program: program.to_owned(), folder: folder.to_owned(), api, gateway, child: Some(child) };
        cluster.wait_until("the agents are connected", |cluster| {
            let targets = cluster.get("/v1/targets?limit=100").unwrap_or_default();
            let connected = |target: &&Value| target["connected"] == true;
            Ok(targets["items"].as_array().map_or(0, |targets| targets.iter().filter(connected).count()) >= usize::from(agents))
        })?;
        Ok(cluster)
    }

    /// The token of a role.
    pub fn token(&self, role: &str) -> String {
        let file = self.folder.join("data/server/tokens").join(role);
        std::fs::read_to_string(file).unwrap_or_default().trim().to_owned()
    }

    /// Runs `swell` and returns what it printed, whatever its exit code.
    pub fn swell(&self, arguments: &[&str]) -> Result<(i32, String)> {
        println!("    $ swell {}", arguments.join(" "));
        let output = self.command(arguments).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        Ok((output.status.code().unwrap_or(-1), text))
    }

    /// Runs `swell`, which must succeed.
    pub fn ok(&self, arguments: &[&str]) -> Result<String> {
        let (code, text) = self.swell(arguments)?;
        ensure!(code == 0, "`swell {}` ended with exit code {code}:\n{text}", arguments.join(" "));
        Ok(text)
    }

    /// Runs `swell --json`, which must succeed, and returns the object that it printed.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.command(&[&["--json"], arguments].concat()).output()?;
        let shown = format!("swell --json {}", arguments.join(" "));
        ensure!(output.status.success(), "`{shown}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).with_context(|| format!("`{shown}` did not print JSON"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null());
        command.env("SWELL_ADDR", format!("http://{}", self.api)).env("SWELL_TOKEN", self.token("admin"));
        command
    }

    /// What the API answers.
    pub fn get(&self, path: &str) -> Result<Value> {
        let (status, body) = ask(self.api, "localhost", path, &self.token("viewer"))?;
        ensure!(status == 200, "GET {path}: {status} {body}");
        Ok(serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    /// Waits for a condition, with a deadline.
    pub fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                bail!("`swell dev` ended ({status}); its last words:\n{}", self.log_tail());
            }
            if condition(self).unwrap_or(false) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "waited {PATIENCE:?} until {what}; the last of the log:\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.folder.join("swell-dev.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Stops everything that was started.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
        child.wait()?;
        Ok(())
    }

    /// Lets it run on after the demonstration.
    pub fn leave(&mut self) {
        self.child = None;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("`swell dev` could not be stopped: {error}");
        }
    }
}

/// One request: its status and its body.
pub fn ask(address: SocketAddr, host: &str, path: &str, token: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let authorization = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n{authorization}Connection: close\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no answer")?;
    loop {
        let mut field = String::new();
        if reader.read_line(&mut field)? == 0 || field == "\r\n" {
            break;
        }
    }
    let mut body = String::new();
    reader.read_to_string(&mut body)?;
    Ok((status, body))
}
