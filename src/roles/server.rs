//! `swell server`: wires state, content store, actors and the API together.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use swell_actors::LocalRunner;
use swell_artifacts::store::{ContentStore, Embedded, EmbeddedOptions};
use swell_git::Mirrors;
use swell_http::Api;
use swell_model::{
    build::Resources,
    ids::RunnerName,
    interfaces::{LogSource, Proposer, SessionSink},
    units::{ByteSize, Millis},
};
use swell_repositories::{Commits, HostedRepositories, Pushes};
use swell_runner::attempts::{Attempts, AttemptsOptions};
use swell_sandbox::{isolation, runtime::ShimRuntime};
use swell_security::{at_work, tokens::Tokens};
use tokio_util::sync::CancellationToken;

use super::{bind, misconfigured, open_files_max, private_folder};

/// How often the content store is swept of leftovers of deletions.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Every how many sweeps also content that state no longer references is deleted. Not directly after a start: interrupted work may be
/// about to reference it.
const SWEEPS_BETWEEN: u64 = 6;
/// How long unreferenced content is kept: longer than a build or push takes from storing content to referencing it.
const UNNAMED_KEPT: Millis = Millis::from_secs(24 * 3600);

/// Options of a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder for all data.
    pub data: PathBuf,
    /// Address of the API.
    pub listen: SocketAddr,
    /// Raft node id.
    pub id: u64,
    /// Options of the runner beside this server, if it runs builds.
    pub runner: Option<RunnerOptions>,
}

/// Options of the runner that a server starts beside itself.
#[derive(Debug, Clone)]
pub struct RunnerOptions {
    pub name: RunnerName,
    /// Capacity offered to builds.
    pub resources: Resources,
    /// Run builds as plain processes where this machine forbids namespaces; only for `swell dev`.
    pub allow_unisolated: bool,
}

/// Runs a server until `stop`.
pub async fn run(options: Options, stop: CancellationToken) -> Result<()> {
    open_files_max();
    private_folder(&options.data)?;
    let listener = bind(options.listen, "--listen").await?;
    let _announced = at_work::announce(&options.data, listener.local_addr()?)
        .with_context(|| format!("failed to write the server's address to {}", options.data.display()))?;
    let folder = |name: &str| options.data.join(name);
    let tokens = Arc::new(Tokens::load_or_create(folder("tokens"))?);
    let node = swell_raft::Node::start(swell_raft::Options::new(&options.data, options.id)).await?;
    let content: Arc<dyn ContentStore> = {
        let store = Embedded::open(folder("content"), EmbeddedOptions::default()).await?;
        tokio::spawn(keep_clean(store.clone(), node.clone(), stop.clone()));
        Arc::new(store)
    };
    let proposer: Arc<dyn Proposer> = Arc::new(node.clone());
    let pushes = Pushes { node: node.clone(), proposer: Arc::clone(&proposer), content: Arc::clone(&content) };
    let repositories = HostedRepositories::open(folder("repositories"), Arc::new(pushes)).await?;
    let mirrors = Mirrors::open(folder("mirrors")).await?;
    let runner = match &options.runner {
        Some(runner) => Some(local_runner(runner, &options, &content, &mirrors, &proposer).await?),
        None => None,
    };
    let logs: Arc<dyn LogSource> = match &runner {
        Some(runner) => Arc::new(runner.attempts.clone()),
        None => Arc::new(NoLogs),
    };
    let mut tree = swell_actors::start(swell_actors::Options {
        node: node.clone(),
        server: options.id,
        content: Arc::clone(&content),
        repositories: repositories.clone(),
        mirrors: mirrors.clone(),
        runner,
    })
    .await?;
    let sessions: Arc<dyn SessionSink> = Arc::new(tree.sessions());
    let api = Api {
        node: node.clone(),
        proposer,
        content,
        sessions,
        logs,
        git: Some(repositories),
        commits: Commits::new(node.clone(), Some(mirrors)),
        tokens,
        options: swell_http::Options::default(),
    };
    tracing::info!(address = %listener.local_addr()?, data = %options.data.display(), "server is ready");
    let ended = tokio::select! {
        () = swell_http::serve(listener, api, stop.cancelled_owned()) => Ok(()),
        () = tree.failed() => bail!("the root actor failed, so no build or rollout would make progress; restart the server"),
        why = node.stopped() => Err(anyhow!("this server has stopped: {why}")),
    };
    tree.stop().await;
    let closed = node.shutdown().await;
    // The reason of the stop comes before errors that follow from it.
    ended?;
    Ok(closed?)
}

/// Sweeps the content store until `stop`.
async fn keep_clean(store: Embedded, node: swell_raft::Node, stop: CancellationToken) {
    for round in 1u64.. {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        if let Err(error) = store.sweep().await {
            tracing::warn!(%error, "failed to sweep the content store");
        }
        if round % SWEEPS_BETWEEN != 0 {
            continue;
        }
        match swell_actors::sweep_unnamed(&node, &store, UNNAMED_KEPT).await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "deleted unreferenced content"),
            Err(error) => tracing::warn!(%error, "failed to delete unreferenced content, retrying at the next sweep"),
        }
    }
}

async fn local_runner(
    runner: &RunnerOptions,
    options: &Options,
    content: &Arc<dyn ContentStore>,
    mirrors: &Mirrors,
    proposer: &Arc<dyn Proposer>,
) -> Result<LocalRunner> {
    let report = tokio::task::spawn_blocking(isolation::probe).await?;
    if let isolation::Level::None { why } = &report.level {
        if !runner.allow_unisolated {
            let fixes: Vec<&str> =
                report.checks.iter().filter(|check| check.required).filter_map(|check| check.fix.as_deref()).collect();
            let fixes = fixes.join("; ");
            let error = anyhow!("builds cannot be isolated on this machine ({why}): {fixes}; `swell doctor` shows every check");
            return Err(misconfigured(error));
        }
        tracing::warn!(
            why,
            "BUILDS ARE NOT ISOLATED: they run as plain processes of this user and can read and change what it can"
        );
    }
    let attempts = AttemptsOptions {
        data_dir: options.data.join("runner"),
        runner: runner.name.clone(),
        shim: ShimRuntime::default(),
        isolation: report.level,
        allow_unisolated: runner.allow_unisolated,
    };
    let attempts = Attempts::open(attempts, Arc::clone(content), mirrors.clone(), Arc::clone(proposer)).await?;
    Ok(LocalRunner { name: runner.name.clone(), resources: runner.resources, attempts })
}

/// The default capacity for builds: all CPUs, and three quarters of the memory.
pub fn default_capacity() -> Resources {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u32;
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total_kib =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let memory = ByteSize(total_kib.unwrap_or(4 << 20) * 1024 / 4 * 3);
    Resources { cpu_millis: cpus * 1000, memory }
}

/// A server without a runner has no logs of running builds.
struct NoLogs;

impl LogSource for NoLogs {
    fn follow(
        &self,
        _: swell_model::ids::BuildId,
        _: u32,
        _: u64,
    ) -> Option<futures::stream::BoxStream<'static, swell_model::interfaces::LogChunk>> {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{fs, io::Write as _, path::Path};

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use swell_model::principal::Role;
    use swell_security::at_work;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A small disk, until dropped.
    struct Disk(tempfile::TempDir);

    impl Drop for Disk {
        fn drop(&mut self) {
            umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
        }
    }

    /// Fills the disk but for a few MiB.
    fn fill(disk: &Path) {
        let mut file = fs::File::create(disk.join("filler")).unwrap();
        let mut mebibytes = 0;
        while file.write_all(&[1; 1 << 20]).is_ok() {
            mebibytes += 1;
        }
        file.set_len((mebibytes - 8) << 20).unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn server_exits_when_its_disk_is_full() {
        let dir = tempfile::tempdir().unwrap();
        if let Err(error) = mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=256m")) {
            eprintln!("SKIPPED: a full disk cannot be tried without root: mount: {error}");
            return;
        }
        let disk = Disk(dir);
        let data = disk.0.path().join("data");
        let listen = "127.0.0.1:0".parse().unwrap();
        let options = Options { data: data.clone(), listen, id: 1, runner: None };
        let server = tokio::spawn(run(options, CancellationToken::new()));
        let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        let ended = tokio::time::timeout(PATIENCE, async {
            let mut filled = false;
            while !server.is_finished() {
                let (Some(url), Ok(token)) = (at_work::url(&data), Tokens::read(&data.join("tokens"), Role::Admin)) else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                // Refused for its name, but kept in the log as all that is proposed.
                let body = serde_json::json!({ "name": "shop", "default_branch": "x".repeat(400_000) });
                let sent = client.post(format!("{url}/v1/repositories")).bearer_auth(token).json(&body).send().await;
                if !filled && sent.is_ok_and(|answer| answer.status() == reqwest::StatusCode::UNPROCESSABLE_ENTITY) {
                    fill(disk.0.path());
                    filled = true;
                }
            }
            server.await.unwrap()
        });
        let why = format!("{:#}", ended.await.unwrap().unwrap_err());
        assert!(why.contains("this server has stopped") && why.contains("disk is full"), "{why}");
    }
}
