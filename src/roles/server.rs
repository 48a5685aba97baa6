//! `swell server`: state, bytes, actors and the API, wired together.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use groundswell::{
    actors::{self, LocalRunner},
    artifacts::{
        git::{HostedRepositories, Mirrors},
        store::{ContentStore, Embedded, EmbeddedOptions},
    },
    http::{self, Api, Pushes},
    model::{
        build::Resources,
        ids::RunnerName,
        ports::{LogSource, Proposer, SessionSink},
        units::{ByteSize, Millis},
    },
    raft,
    runner::{
        attempts::{Attempts, AttemptsOptions},
        isolation,
        runtime::ShimRuntime,
    },
    security::{at_work, tokens::Tokens},
};
use tokio_util::sync::CancellationToken;

use super::{bind, private_folder};

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
    private_folder(&options.data)?;
    let listener = bind(options.listen, "--listen").await?;
    let _announced = at_work::announce(&options.data, listener.local_addr()?)
        .with_context(|| format!("cannot say in {} where this server listens", options.data.display()))?;
    let folder = |name: &str| options.data.join(name);
    let tokens = Arc::new(Tokens::load_or_create(folder("tokens"))?);
    let node = raft::Node::start(raft::Options::new(&options.data, options.id)).await?;
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
    let mut tree = actors::start(actors::Options {
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
        mirrors: Some(mirrors),
        tokens,
        options: http::Options::default(),
    };
    tracing::info!(address = %listener.local_addr()?, data = %options.data.display(), "the server is ready");
    tokio::select! {
        () = http::serve(listener, api, stop.cancelled_owned()) => {}
        () = tree.failed() => bail!("the root of the actors failed, and nothing would be driven any more: start the server again"),
    }
    tree.stop().await;
    node.shutdown().await?;
    Ok(())
}

/// Sweeps the content store until `stop`.
async fn keep_clean(store: Embedded, node: raft::Node, stop: CancellationToken) {
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
        match actors::sweep_unnamed(&node, &store, UNNAMED_KEPT).await {
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
            bail!("builds cannot be isolated on this machine ({why}): {}; `swell doctor` shows every check", fixes.join("; "));
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
        _: groundswell::model::ids::BuildId,
        _: u32,
        _: u64,
    ) -> Option<futures::stream::BoxStream<'static, groundswell::model::ports::LogChunk>> {
        None
    }
}
