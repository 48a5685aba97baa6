//! `swell dev`: everything on one laptop. A server that is also a runner, a gateway and a few agents, each a process of its own, so
//! that one can be killed and seen to come back.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
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

/// What a laptop's cluster is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where everything is kept.
    pub data: PathBuf,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Where the gateway takes requests.
    pub gateway: SocketAddr,
    /// Where the gateway is asked about itself.
    pub gateway_admin: SocketAddr,
    /// How many targets to play, in two zones.
    pub agents: u16,
    /// The first port of the first target's services.
    pub first_port: u16,
}

/// Runs everything until `stop`, then stops it and what it started.
pub async fn run(options: Options, stop: CancellationToken) -> Result<()> {
    if !options.listen.ip().is_loopback() || !options.gateway.ip().is_loopback() {
        let told =
            "`swell dev` listens on loopback addresses only: use `swell server`, `swell gateway` and `swell agent` for others";
        return Err(misconfigured(anyhow!(told)));
    }
    passable_folder(&options.data)?;
    // Told before anything is started, and by name.
    drop(bind(options.listen, "--listen").await?);
    drop(bind(options.gateway, "--gateway").await?);
    drop(bind(options.gateway_admin, "--gateway-admin").await?);

    let program = std::env::current_exe().context("the program's own path is not known")?;
    let server = Part::server(&program, &options);
    let tokens = options.data.join("server/tokens");
    let mut children = vec![tokio::spawn(keep(server, stop.clone()))];
    ready(&options, &stop).await?;
    let token = |role: Role| std::fs::read_to_string(tokens.join(role.name())).context("the server's tokens cannot be read");
    let gateway = Part::gateway(&program, &options, token(Role::Gateway)?.trim());
    children.push(tokio::spawn(keep(gateway, stop.clone())));
    for number in 1..=options.agents {
        let agent = Part::agent(&program, &options, number, token(Role::Agent)?.trim());
        children.push(tokio::spawn(keep(agent, stop.clone())));
    }
    welcome(&options, &tokens);
    stop.cancelled().await;
    for child in children {
        if child.await.is_err() {
            tracing::warn!("a child could not be waited for");
        }
    }
    stop_instances(&options).await;
    Ok(())
}

/// One child process.
struct Part {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

impl Part {
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
        // What this machine's real roles read from /etc/swell is not for a play thing.
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
        // A terminal's Ctrl-C goes to the whole group: the children stop when they are told to, in order.
        command.process_group(0);
        // SAFETY: prctl is async-signal-safe, and only sets what the kernel does when the parent ends.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM).map_err(std::io::Error::from));
        }
        command.spawn().with_context(|| format!("{} cannot be started", self.name))
    }
}

/// Keeps a child running until `stop`.
async fn keep(part: Part, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let mut child = match part.start() {
            Ok(child) => child,
            Err(error) => {
                tracing::error!(part = part.name, %error, "a part cannot be started");
                tokio::time::sleep(RESTART_AFTER).await;
                continue;
            }
        };
        tokio::select! {
            ended = child.wait() => {
                let status = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                tracing::warn!(part = part.name, status, "a part ended; it is started again");
                tokio::time::sleep(RESTART_AFTER).await;
            }
            () = stop.cancelled() => terminate(&part.name, &mut child).await,
        }
    }
}

async fn terminate(name: &str, child: &mut Child) {
    let Some(pid) = child.id() else { return };
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    if let Err(error) = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM) {
        tracing::debug!(part = name, %error, "a part had ended already");
    }
    if tokio::time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
        tracing::warn!(part = name, "a part did not stop in time and is killed");
        if let Err(error) = child.kill().await {
            tracing::warn!(part = name, %error, "a part cannot be killed");
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
            bail!("the server did not become ready within {READY_WITHIN:?}: its messages above say why");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn welcome(options: &Options, tokens: &Path) {
    let token = tokens.join(Role::Admin.name());
    println!("Groundswell runs here: a server with a runner, a gateway, and {} targets in two zones.", options.agents);
    println!();
    println!("  export SWELL_ADDR=http://{}", options.listen);
    println!("  export SWELL_TOKEN=$(cat {})", token.display());
    println!();
    println!("  gateway    http://{}", options.gateway);
    println!("  data       {}", options.data.display());
    println!();
    println!("Ctrl-C stops everything, what it deployed included.");
}

/// A laptop's instances end with it. On a real target they would go on.
async fn stop_instances(options: &Options) {
    for shim in shim_folders(&options.data) {
        if let Ok(Some(handle)) = runtime::adopt(&shim).await {
            if let Err(error) = handle.stop() {
                tracing::debug!(%error, "an instance had ended already");
            }
            if tokio::time::timeout(STOP_WITHIN, handle.wait()).await.is_err() {
                tracing::warn!(shim = %shim.display(), "an instance did not stop in time");
            }
        }
        if let Err(error) = runtime::clear(&shim).await {
            tracing::warn!(shim = %shim.display(), %error, "an instance left something behind");
        }
    }
}

/// Every folder below `data` that a shim was started in.
fn shim_folders(data: &Path) -> Vec<PathBuf> {
    let specs = walkdir::WalkDir::new(data).max_depth(8).into_iter().filter_map(Result::ok);
    specs.filter(|entry| entry.file_name() == "spec.json").filter_map(|entry| entry.path().parent().map(Path::to_owned)).collect()
}
