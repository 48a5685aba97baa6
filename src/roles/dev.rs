//! `swell dev`: everything on one machine, for trying it out. A server with a runner, a gateway and a few agents, each a process of its
//! own, so that one can be killed and is seen to recover.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use swell_model::principal::Role;
use swell_sandbox::runtime;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::{bind, misconfigured, passable_folder};

/// The delay before a child that ended is started again.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// How long the server may take until it answers.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How long the children may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// How many ports the services of each target have.
const PORTS_EACH: u16 = 200;

/// Options of `swell dev`.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder for all data; one `swell dev` at a time may use it.
    pub data: PathBuf,
    /// Address of the API.
    pub listen: SocketAddr,
    /// Address that the gateway serves requests on.
    pub gateway: SocketAddr,
    /// Address of the gateway's own endpoints.
    pub gateway_admin: SocketAddr,
    /// Number of targets, spread over two zones.
    pub agents: u16,
    /// First port for services of the first target.
    pub first_port: u16,
}

/// Runs everything until `stop`, then stops it and what it started.
pub async fn run(options: Options, stop: CancellationToken) -> Result<()> {
    if !options.listen.ip().is_loopback() || !options.gateway.ip().is_loopback() {
        let message =
            "`swell dev` listens on loopback addresses only: use `swell server`, `swell gateway` and `swell agent` for others";
        return Err(misconfigured(anyhow!(message)));
    }
    passable_folder(&options.data)?;
    let _lock = lock(&options.data)?;
    // Checked before anything is started, so that the error names the flag.
    drop(bind(options.listen, "--listen").await?);
    drop(bind(options.gateway, "--gateway").await?);
    drop(bind(options.gateway_admin, "--gateway-admin").await?);

    let program = std::env::current_exe().context("failed to find the path of this program")?;
    let server = ChildProcess::server(&program, &options);
    let tokens = options.data.join("server/tokens");
    let mut children = vec![tokio::spawn(keep(server, stop.clone()))];
    ready(&options, &stop).await?;
    let token = |role: Role| std::fs::read_to_string(tokens.join(role.name())).context("failed to read the server's tokens");
    let gateway = ChildProcess::gateway(&program, &options, token(Role::Gateway)?.trim());
    children.push(tokio::spawn(keep(gateway, stop.clone())));
    for number in 1..=options.agents {
        let agent = ChildProcess::agent(&program, &options, number, token(Role::Agent)?.trim());
        children.push(tokio::spawn(keep(agent, stop.clone())));
    }
    welcome(&options, &tokens);
    stop.cancelled().await;
    for child in children {
        if child.await.is_err() {
            tracing::warn!("supervision of a child process panicked");
        }
    }
    stop_instances(&options).await;
    Ok(())
}

/// The command of a child process.
struct ChildProcess {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

impl ChildProcess {
    fn server(program: &Path, options: &Options) -> Self {
        let data = options.data.join("server");
        let arguments = [
            "server",
            "--runner",
            "--allow-unisolated",
            "--listen",
            &options.listen.to_string(),
            "--data",
            &data.to_string_lossy(),
        ];
        Self::new("server", program, &arguments, Vec::new())
    }

    fn gateway(program: &Path, options: &Options, token: &str) -> Self {
        let data = options.data.join("gateway");
        let arguments = [
            "gateway",
            "--name",
            "gateway",
            "--listen",
            &options.gateway.to_string(),
            "--admin",
            &options.gateway_admin.to_string(),
            "--server",
            &options.listen.to_string(),
            "--data",
            &data.to_string_lossy(),
        ];
        Self::new("gateway", program, &arguments, vec![("SWELL_TOKEN", token.to_owned())])
    }

    fn agent(program: &Path, options: &Options, number: u16, token: &str) -> Self {
        let name = format!("web-{number}");
        let data = options.data.join("agents").join(&name);
        let first = options.first_port + (number - 1) * PORTS_EACH;
        let zone = if number % 2 == 1 { "a" } else { "b" };
        let arguments = [
            "agent",
            "--allow-unisolated",
            "--name",
            &name,
            "--region",
            "local",
            "--zone",
            zone,
            "--ports",
            &format!("{first}-{}", first + PORTS_EACH - 1),
            "--address",
            &IpAddr::V4(Ipv4Addr::LOCALHOST).to_string(),
            "--server",
            &options.listen.to_string(),
            "--data",
            &data.to_string_lossy(),
        ];
        Self::new(&name, program, &arguments, vec![("SWELL_TOKEN", token.to_owned())])
    }

    fn new(name: &str, program: &Path, arguments: &[&str], environment: Vec<(&'static str, String)>) -> Self {
        // The files in /etc/swell are for installed roles.
        let arguments = arguments.iter().chain(&["--config", "/dev/null"]).map(|argument| (*argument).to_owned()).collect();
        Self { name: name.to_owned(), program: program.to_owned(), arguments, environment }
    }

    fn start(&self) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_remove("SWELL_DATA")
            .env_remove("SWELL_TOKEN_FILE")
            .envs(self.environment.clone())
            .stdin(Stdio::null());
        // Ctrl-C reaches a terminal's whole process group; children are stopped in order instead.
        command.process_group(0);
        // SAFETY: prctl is async-signal-safe; it only sets the signal that the kernel sends when the parent ends.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM).map_err(std::io::Error::from));
        }
        command.spawn().with_context(|| format!("failed to start {}", self.name))
    }
}

/// Restarts a child process whenever it ends, until `stop`.
async fn keep(child_process: ChildProcess, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let mut child = match child_process.start() {
            Ok(child) => child,
            Err(error) => {
                tracing::error!(process = child_process.name, %error, "failed to start process");
                tokio::time::sleep(RESTART_AFTER).await;
                continue;
            }
        };
        tokio::select! {
            ended = child.wait() => {
                let status = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                tracing::warn!(process = child_process.name, status, "process ended, restarting it");
                tokio::time::sleep(RESTART_AFTER).await;
            }
            () = stop.cancelled() => terminate(&child_process.name, &mut child).await,
        }
    }
}

async fn terminate(name: &str, child: &mut Child) {
    let Some(pid) = child.id() else { return };
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    if let Err(error) = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM) {
        tracing::debug!(process = name, %error, "process had already ended");
    }
    if tokio::time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
        tracing::warn!(process = name, "process did not stop in time, killing it");
        if let Err(error) = child.kill().await {
            tracing::warn!(process = name, %error, "failed to kill process");
        }
    }
}

/// Waits until the server answers.
async fn ready(options: &Options, stop: &CancellationToken) -> Result<()> {
    let deadline = tokio::time::Instant::now() + READY_WITHIN;
    let url = format!("http://{}/readyz", options.listen);
    loop {
        if let Ok(answer) = reqwest::get(&url).await
            && answer.status().is_success()
        {
            return Ok(());
        }
        if stop.is_cancelled() {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            stop.cancel();
            bail!("the server was not ready within {READY_WITHIN:?}; its log above says why");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn welcome(options: &Options, tokens: &Path) {
    let token = tokens.join(Role::Admin.name());
    println!("Groundswell is running: a server with a runner, a gateway, and {} targets in two zones.", options.agents);
    println!();
    println!("  export SWELL_ADDR=http://{}", options.listen);
    println!("  export SWELL_TOKEN=$(cat {})", token.display());
    println!();
    println!("  gateway    http://{}", options.gateway);
    println!("  data       {}", options.data.display());
    println!();
    println!("Ctrl-C stops everything, including deployed services.");
}

/// Stops the services of all targets. On a real target they would keep running.
async fn stop_instances(options: &Options) {
    for shim in shim_folders(&options.data) {
        if let Ok(Some(handle)) = runtime::adopt(&shim).await {
            if let Err(error) = handle.stop() {
                tracing::debug!(%error, "instance had already ended");
            }
            if tokio::time::timeout(STOP_WITHIN, handle.wait()).await.is_err() {
                tracing::warn!(shim = %shim.display(), "instance did not stop in time");
            }
        }
        if let Err(error) = runtime::clear(&shim).await {
            tracing::warn!(shim = %shim.display(), %error, "failed to clean up after an instance");
        }
    }
}

/// Locks the data folder: a second `swell dev` on it would stop the services of the first one.
fn lock(data: &Path) -> Result<Flock<File>> {
    let path = data.join("dev.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("failed to open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => {
            let data = data.display();
            misconfigured(anyhow!("another `swell dev` is running on {data}: stop it, or name another folder with --data"))
        }
        error => anyhow!("failed to lock {}: {error}", path.display()),
    })
}

/// Every folder below `data` that a shim was started in.
fn shim_folders(data: &Path) -> Vec<PathBuf> {
    let specs = walkdir::WalkDir::new(data).max_depth(8).into_iter().filter_map(Result::ok);
    specs.filter(|entry| entry.file_name() == "spec.json").filter_map(|entry| entry.path().parent().map(Path::to_owned)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn second_dev_on_same_data_folder_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let first = lock(data.path()).unwrap();
        let error = lock(data.path()).unwrap_err();
        assert!(error.to_string().contains("another `swell dev` is running on"), "{error}");
        assert_eq!(crate::roles::exit_of(&error), swell_cli::Exit::Usage);
        drop(first);
        lock(data.path()).unwrap();
    }
}
