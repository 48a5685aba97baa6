//! `swell server`: state, bytes, actors and the API, wired together.

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

/// How often what deletions leave behind is swept up.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Every so many times also what state no longer names. Not at once after a start: who was cut off may be about to name something.
const SWEEPS_BETWEEN: u64 = 6;
/// How long content is kept that no state names: longer than a build or a push takes from storing it to naming it.
const UNNAMED_KEPT: Millis = Millis::from_secs(24 * 3600);

/// What a server is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where everything is kept.
    pub data: PathBuf,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// The server's number.
    pub id: u64,
    /// The runner on this server, where it is one.
    pub runner: Option<RunnerOptions>,
}

/// What a runner on a server is told.
#[derive(Debug, Clone)]
pub struct RunnerOptions {
    /// Its name.
    pub name: RunnerName,
    /// The room for builds.
    pub resources: Resources,
    /// Whether builds may run as plain processes where this machine forbids namespaces. Only `swell dev` says so.
    pub allow_unisolated: bool,
}

/// Runs a server until `stop`.
pub async fn run(options: Options, stop: CancellationToken) -> Result<()> {
    open_files_max();
    private_folder(&options.data)?;
    let listener = bind(options.listen, "--listen").await?;
    let _announced = at_work::announce(&options.data, listener.local_addr()?)
        .with_context(|| format!("cannot say in {} where this server listens", options.data.display()))?;
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
    tracing::info!(address = %listener.local_addr()?, data = %options.data.display(), "the server is ready");
    let ended = tokio::select! {
        () = swell_http::serve(listener, api, stop.cancelled_owned()) => Ok(()),
        () = tree.failed() => bail!("the root of the actors failed, and nothing would be driven any more: start the server again"),
        why = node.stopped() => Err(anyhow!("this server has stopped: {why}")),
    };
    tree.stop().await;
    let closed = node.shutdown().await;
    // Why it stopped comes before what followed from that.
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
            tracing::warn!(%error, "the content store cannot be swept");
        }
        if round % SWEEPS_BETWEEN != 0 {
            continue;
        }
        match swell_actors::sweep_unnamed(&node, &store, UNNAMED_KEPT).await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "content that no state names was deleted"),
            Err(error) => tracing::warn!(%error, "what no state names stays until the next sweep"),
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
            let told = anyhow!("builds cannot be isolated on this machine ({why}): {fixes}; `swell doctor` shows every check");
            return Err(misconfigured(told));
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

/// The room that this machine has for builds: its CPUs, and three quarters of its memory.
pub fn room_here() -> Resources {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u32;
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total_kib =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let memory = ByteSize(total_kib.unwrap_or(4 << 20) * 1024 / 4 * 3);
    Resources { cpu_millis: cpus * 1000, memory }
}

/// A server that is no runner holds no live logs.
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
    async fn a_server_on_a_full_disk_ends_so_that_it_is_started_again() {
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
