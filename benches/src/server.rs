//! `swell server` on loopback with a temporary data folder. Knows how it is started and reached, not what is measured.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use swell_loadgen::api::Api;
use swell_model::principal::Role;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::{
    Setup,
    process::{Process, Usage, folder, free_address},
};

/// How long a server may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A server and all that it keeps.
#[derive(Debug)]
pub struct Server {
    program: PathBuf,
    arguments: Vec<String>,
    pub listen: SocketAddr,
    process: Option<Process>,
    folder: tempfile::TempDir,
    pushes: AtomicU64,
}

impl Server {
    /// Starts a server and waits until it is ready.
    pub async fn start(setup: &Setup) -> Result<Self> {
        Self::start_with(setup, &[]).await
    }

    /// The same with more arguments.
    pub async fn start_with(setup: &Setup, arguments: &[&str]) -> Result<Self> {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let (program, listen) = (setup.swell.clone(), free_address()?);
        let mut server = Self { program, arguments, listen, process: None, folder: folder()?, pushes: AtomicU64::new(0) };
        server.resume().await?;
        Ok(server)
    }

    /// Starts the server again over what it kept.
    pub async fn resume(&mut self) -> Result<()> {
        let data = self.folder.path().join("data");
        let mut command = swell(&self.program);
        command.arg("server").arg("--data").arg(&data).args(["--listen", &self.listen.to_string(), "--config", "/dev/null"]);
        command.args(&self.arguments);
        let mut process = Process::start("swell server", command, &self.folder.path().join("server.log"))?;
        process.listens(self.listen).await?;
        let process = self.process.insert(process);
        let deadline = Instant::now() + READY_WITHIN;
        // Its tokens may not be written yet; whether it is ready anybody may ask.
        let api = Api { server: self.listen, token: "none".to_owned() };
        while api.connect().await?.send(hyper::Method::GET, "/readyz", Default::default()).await?.0 != hyper::StatusCode::OK {
            ensure!(Instant::now() < deadline, "swell server is not ready after {READY_WITHIN:?}: {}", process.tail());
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The token of `role`.
    pub fn token(&self, role: Role) -> Result<String> {
        token(&self.folder.path().join("data"), role)
    }

    /// The API, as an admin.
    pub fn api(&self) -> Result<Api> {
        Ok(Api { server: self.listen, token: self.token(Role::Admin)? })
    }

    /// Memory and processor time of the server.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.process.as_ref().context("the server does not run")?.id()?)
    }

    /// Kills the server.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.take().context("the server does not run")?.kill().await
    }

    /// Ends the server and removes what it kept.
    pub async fn stop(mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.stop().await,
            None => Ok(()),
        }
    }

    /// Creates a pipeline whose releases are pushed by [`Server::push`].
    pub async fn create_pipeline(&self, name: &str) -> Result<()> {
        let api = self.api()?;
        api.post("/v1/repositories", &json!({ "name": name })).await?;
        api.post("/v1/pipelines", &json!({ "name": name, "source": { "hosted": name } })).await?;
        Ok(())
    }

    /// Makes a release of a folder with one file, described by the pipeline file `file`; the release's id.
    pub async fn push(&self, pipeline: &str, file: &str, content: &str) -> Result<String> {
        let source = folder()?;
        let (toml, dir) = (source.path().join("swell.toml"), source.path().join("out"));
        fs::create_dir(&dir)?;
        fs::write(&toml, file)?;
        fs::write(dir.join("content"), content)?;
        // Each release is said to be built from a commit of its own.
        let commit = format!("{:040x}", self.pushes.fetch_add(1, Ordering::Relaxed) + 1);
        let mut command = swell(&self.program);
        command.args(["artifact", "push", pipeline]).arg(&dir).args(["--commit", &commit, "--file"]).arg(&toml);
        command.env("SWELL_ADDR", format!("http://{}", self.listen)).env("SWELL_TOKEN", self.token(Role::Admin)?);
        command.env("HOME", source.path()).kill_on_drop(true);
        let output = command.output().await.context("failed to run swell artifact push")?;
        ensure!(output.status.success(), "swell artifact push failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        let releases = self.api()?.get(&format!("/v1/releases?pipeline={pipeline}&limit=500")).await?;
        let items = releases["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let number = |item: &Value| item["id"].as_str().and_then(|id| id.rsplit_once('@')?.1.parse::<u64>().ok());
        let newest = items.iter().filter_map(number).max().with_context(|| format!("{pipeline} has no release after a push"))?;
        Ok(format!("{pipeline}@{newest}"))
    }

    /// Moves an environment to a release; the rollout's id.
    pub async fn deploy(&self, pipeline: &str, environment: &str, release: &str) -> Result<String> {
        let body = json!({ "pipeline": pipeline, "environment": environment, "release": release });
        let rollout = self.api()?.post("/v1/rollouts", &body).await?;
        Ok(rollout["id"].as_str().context("a rollout without an id")?.to_owned())
    }

    /// Waits until a rollout has ended; its state.
    pub async fn ended(&self, rollout: &str, limit: Duration) -> Result<String> {
        let mut connection = self.api()?.connect().await?;
        let deadline = Instant::now() + limit;
        loop {
            let shown = connection.json(hyper::Method::GET, &format!("/v1/rollouts/{rollout}"), None).await?;
            if shown["ended"] == true {
                return Ok(shown["state"].as_str().unwrap_or_default().to_owned());
            }
            ensure!(Instant::now() < deadline, "rollout {rollout} has not ended after {limit:?}: {shown}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The program, away from this user's settings.
fn swell(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LC_ALL", "C.UTF-8");
    command
}

fn token(data: &Path, role: Role) -> Result<String> {
    let path = data.join("tokens").join(role.name());
    Ok(fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?.trim().to_owned())
}
