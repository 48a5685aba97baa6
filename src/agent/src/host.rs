//! The agent itself: one for each data folder, with its session and a task for each pipeline. Must not know how a pipeline converges.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    context::Context,
    data_folder::{self, DataFolder},
    decide::Desired,
    launch::Surroundings,
    options::{AgentError, AgentOptions},
    pipeline,
    reports::Reports,
    session::{self, Following},
};
use swell_model::{ids::PipelineName, rollout::assignment::DesiredTarget};
use swell_sandbox::{isolation, runtime::ShimRuntime};

/// How long a connection to a server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before the task of a pipeline that panicked is started again.
const PANIC_PAUSE: Duration = Duration::from_secs(5);
/// What isolation needs to run plain processes, as `sandbox::isolation` names it.
const NEEDED: [&str; 3] = ["root", "control groups", "resource limits"];

/// The agent of one target.
pub struct Agent {
    context: Arc<Context>,
    folder: DataFolder,
    desired: Option<DesiredTarget>,
}

struct Task {
    wants: watch::Sender<Desired>,
    task: JoinHandle<()>,
}

impl Agent {
    /// Takes the data folder, begins another incarnation, and reads what was desired last. Blocks for some ten milliseconds: it looks at
    /// what this machine allows.
    ///
    /// # Errors
    /// When the options are wrong, the folder cannot be used or another agent has it, or instances would not be isolated.
    pub fn open(mut options: AgentOptions) -> Result<Self, AgentError> {
        options.check()?;
        let folder = DataFolder::open(&options.data_dir)?;
        let isolated = is_isolated(options.allow_unisolated)?;
        let desired = folder.load_desired()?;
        let client = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).no_proxy().build();
        let client = client.map_err(|error| AgentError::Client(error.to_string()))?;
        let context = Context {
            identity: folder.begin_incarnation()?,
            around: Surroundings { info: options.info, tag: folder.tag(), isolated, default_user: options.default_user },
            runtime: options.shim.map_or_else(ShimRuntime::default, ShimRuntime::with_executable),
            timing: options.timing,
            reserve: options.reserve,
            data_dir: folder.path.clone(),
            client,
            token: options.token,
            servers: options.servers,
            server: watch::Sender::new(None),
            reports: Reports::default(),
            clock: Instant::now(),
        };
        Ok(Self { context: Arc::new(context), folder, desired })
    }

    /// Converges until `stop`. What runs goes on afterwards.
    ///
    /// # Errors
    /// When the data folder cannot be read.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), AgentError> {
        let mut tasks = BTreeMap::new();
        let recorded = self.folder.pipelines()?;
        self.spread(recorded, &mut tasks, &stop);
        let following = watch::Sender::new(self.following());
        // One waits at most: the session reads no further meanwhile.
        let (offers, mut offered) = mpsc::channel(1);
        let session = tokio::spawn(session::keep(self.context.clone(), following.subscribe(), offers, stop.clone()));
        loop {
            let desired: DesiredTarget = tokio::select! {
                () = stop.cancelled() => break,
                Some(desired) = offered.recv() => desired,
            };
            if self.follow(desired).await {
                following.send_replace(self.following());
                self.spread(BTreeSet::new(), &mut tasks, &stop);
            }
        }
        let sessions_end = session.await;
        let mut ends = vec![sessions_end];
        for (_, task) in tasks {
            ends.push(task.task.await);
        }
        for error in ends.into_iter().filter_map(Result::err) {
            tracing::error!(%error, "a task of the agent panicked");
        }
        Ok(())
    }

    fn following(&self) -> Following {
        let Some(desired) = &self.desired else { return Following::default() };
        Following { generation: desired.generation, hash: Some(desired.hash()) }
    }

    /// Follows `desired`, saved before, unless it is older than what is followed or the same.
    async fn follow(&mut self, desired: DesiredTarget) -> bool {
        let (following, offered) = (self.following().generation, desired.generation);
        if desired.target != self.context.around.info.name {
            tracing::error!(target = %desired.target, "ignored desired state of another target");
            return false;
        }
        if self.desired.is_some() && offered < following {
            tracing::warn!(?offered, ?following, "ignored older desired state");
            return false;
        }
        if self.desired.as_ref() == Some(&desired) {
            return false;
        }
        let path = self.folder.path.clone();
        let saved = tokio::task::spawn_blocking(move || (data_folder::save_desired(&path, &desired), desired)).await;
        let Ok((saved, desired)) = saved else { return false };
        if let Err(error) = saved {
            // A full disk must not keep a rollback away: followed all the same, and sent again after a restart.
            tracing::error!(%error, "failed to save desired state, following it unsaved");
        }
        swell_system::crash::point("agent::desired_saved");
        self.desired = Some(desired);
        true
    }

    /// Tells each pipeline's task what is desired of it; `known` are those that need a task although nothing is desired.
    fn spread(&self, known: BTreeSet<PipelineName>, tasks: &mut BTreeMap<PipelineName, Task>, stop: &CancellationToken) {
        let desired = |name: &PipelineName| match &self.desired {
            None => Desired::Unknown,
            Some(desired) => {
                desired.deployments.get(name).map_or(Desired::Nothing, |release| Desired::Release(Box::new(release.clone())))
            }
        };
        let deployed = self.desired.iter().flat_map(|desired| desired.deployments.keys().cloned());
        for name in known.into_iter().chain(deployed) {
            tasks.entry(name).or_insert_with_key(|name| {
                let (wants, receiver) = watch::channel(desired(name));
                let task = tokio::spawn(keep_running(self.context.clone(), name.clone(), receiver, stop.clone()));
                Task { wants, task }
            });
        }
        for (name, task) in tasks {
            task.wants.send_if_modified(|present| {
                let desired = desired(name);
                let differs = *present != desired;
                *present = desired;
                differs
            });
        }
    }
}

/// Runs the task of a pipeline and starts it again when it panics: the target keeps its agent.
async fn keep_running(context: Arc<Context>, name: PipelineName, wants: watch::Receiver<Desired>, stop: CancellationToken) {
    let span = tracing::info_span!("pipeline", pipeline = %name, target = %context.around.info.name);
    loop {
        let task = pipeline::run(context.clone(), name.clone(), wants.clone(), stop.clone());
        match tokio::spawn(task.instrument(span.clone())).await {
            Ok(()) => return,
            Err(error) => {
                let restart_in_ms = PANIC_PAUSE.as_millis() as u64;
                tracing::error!(pipeline = %name, %error, restart_in_ms, "pipeline task panicked");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(PANIC_PAUSE) => {}
        }
    }
}

fn is_isolated(allow_unisolated: bool) -> Result<bool, AgentError> {
    let report = isolation::probe();
    let missing = report.checks.iter().find(|check| NEEDED.contains(&check.name) && !check.ok);
    let Some(missing) = missing else { return Ok(true) };
    let reason = format!("{}: {}", missing.name, missing.reason);
    if !allow_unisolated {
        return Err(AgentError::NotIsolated(reason));
    }
    tracing::warn!(
        reason,
        "INSTANCES ARE NOT ISOLATED: they run without limits, as this user, and can read and change what it can"
    );
    Ok(false)
}
