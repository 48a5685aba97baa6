//! The agent itself: one for each data folder, with its session and a task for each pipeline. Must not know how a pipeline converges.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    decide::Wanted,
    launch::Surroundings,
    options::{AgentError, AgentOptions},
    pipeline::{self, Shared},
    reports::Reports,
    saved::{self, SavedError},
    session,
};
use swell_model::{
    digest::Digest,
    ids::PipelineName,
    rollout::assignment::{DesiredTarget, Generation},
    wire::AgentId,
};
use swell_sandbox::{isolation, runtime::ShimRuntime};

/// How long a connection to a server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before the task of a pipeline that panicked is started again.
const PANIC_PAUSE: Duration = Duration::from_secs(5);
/// What isolation needs to run plain processes, as `runner::isolation` names it.
const NEEDED: [&str; 3] = ["root", "control groups", "resource limits"];

/// The agent of one target.
pub struct Agent {
    shared: Arc<Shared>,
    desired: Option<DesiredTarget>,
    _lock: Flock<File>,
}

struct Task {
    wants: watch::Sender<Wanted>,
    task: JoinHandle<()>,
}

impl Agent {
    /// Takes the data folder, and reads what was wanted last. Blocks for some ten milliseconds: it looks at what this machine allows.
    pub fn open(mut options: AgentOptions) -> Result<Self, AgentError> {
        if options.servers.is_empty() {
            return Err(AgentError::NoServers);
        }
        for server in &mut options.servers {
            let plain = server.trim_end_matches('/').to_owned();
            if !plain.starts_with("http://") || plain.len() <= "http://".len() || plain["http://".len()..].contains('/') {
                return Err(AgentError::Server(server.clone()));
            }
            *server = plain;
        }
        options.info.agent_version = env!("CARGO_PKG_VERSION").to_owned();
        // Links and shims name it, whatever the working directory is later.
        let data_dir = make_folders(&options.data_dir)?;
        let lock = lock(&data_dir)?;
        let isolated = is_isolated(options.allow_unisolated)?;
        let desired = match saved::load::<DesiredTarget>(&data_dir.join("desired")) {
            Ok(desired) => desired,
            Err(error @ SavedError::Damaged { .. }) => {
                tracing::error!(%error, "what was wanted last is not known: what runs goes on as it is");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let client = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).no_proxy().build();
        let client = client.map_err(|error| AgentError::Client(error.to_string()))?;
        let shared = Shared {
            id: id_kept(&data_dir.join("id"))?,
            around: Surroundings { info: options.info, tag: tag_of(&data_dir), isolated, default_user: options.default_user },
            runtime: options.shim.map_or_else(ShimRuntime::default, ShimRuntime::with_executable),
            timing: options.timing,
            reserve: options.reserve,
            data_dir,
            client,
            token: options.token,
            servers: options.servers,
            server: watch::Sender::new(None),
            reports: Reports::default(),
            clock: Instant::now(),
        };
        Ok(Self { shared: Arc::new(shared), desired, _lock: lock })
    }

    /// Converges until `stop`. What runs goes on afterwards.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), AgentError> {
        let mut tasks = BTreeMap::new();
        let recorded = recorded_pipelines(&self.shared.data_dir)?;
        self.spread(recorded, &mut tasks, &stop);
        let following = watch::Sender::new(self.generation());
        // One waits at most: the session reads no further meanwhile.
        let (offers, mut offered) = mpsc::channel(1);
        let session = tokio::spawn(session::keep(self.shared.clone(), following.subscribe(), offers, stop.clone()));
        loop {
            let desired: DesiredTarget = tokio::select! {
                () = stop.cancelled() => break,
                Some(desired) = offered.recv() => desired,
            };
            if self.follow(desired).await {
                following.send_replace(self.generation());
                self.spread(BTreeSet::new(), &mut tasks, &stop);
            }
        }
        let sessions_end = session.await;
        let mut ends = vec![sessions_end];
        for (_, task) in tasks {
            ends.push(task.task.await);
        }
        for error in ends.into_iter().filter_map(Result::err) {
            tracing::error!(%error, "a task of the agent did not end as it should");
        }
        Ok(())
    }

    fn generation(&self) -> Generation {
        self.desired.as_ref().map(|desired| desired.generation).unwrap_or_default()
    }

    /// Whether a desired state is newer than the one that is followed; if so it is kept, on disk first.
    async fn follow(&mut self, desired: DesiredTarget) -> bool {
        let (following, offered) = (self.generation(), desired.generation);
        if desired.target != self.shared.around.info.name {
            tracing::error!(target = %desired.target, "a server sent what another target should run; ignored");
            return false;
        }
        if self.desired.is_some() && offered < following {
            tracing::warn!(?offered, ?following, "a server sent an older desired state; ignored");
            return false;
        }
        if self.desired.as_ref() == Some(&desired) {
            return false;
        }
        let path = self.shared.data_dir.join("desired");
        let saved = tokio::task::spawn_blocking(move || (saved::save(&path, &desired), desired)).await;
        let Ok((saved, desired)) = saved else { return false };
        if let Err(error) = saved {
            // A full disk must not keep a rollback away: followed all the same, and learned again after a restart.
            tracing::error!(%error, "the desired state could not be kept");
        }
        swell_system::crash::point("agent::desired_saved");
        self.desired = Some(desired);
        true
    }

    /// Tells each pipeline's task what is wanted of it; `known` are those that must have one although nothing is wanted.
    fn spread(&self, known: BTreeSet<PipelineName>, tasks: &mut BTreeMap<PipelineName, Task>, stop: &CancellationToken) {
        let wanted = |name: &PipelineName| match &self.desired {
            None => Wanted::Unknown,
            Some(desired) => {
                desired.deployments.get(name).map_or(Wanted::Nothing, |release| Wanted::Release(Box::new(release.clone())))
            }
        };
        let deployed = self.desired.iter().flat_map(|desired| desired.deployments.keys().cloned());
        for name in known.into_iter().chain(deployed) {
            tasks.entry(name).or_insert_with_key(|name| {
                let (wants, receiver) = watch::channel(wanted(name));
                let task = tokio::spawn(keep_running(self.shared.clone(), name.clone(), receiver, stop.clone()));
                Task { wants, task }
            });
        }
        for (name, task) in tasks {
            task.wants.send_if_modified(|present| {
                let wanted = wanted(name);
                let differs = *present != wanted;
                *present = wanted;
                differs
            });
        }
    }
}

/// A defect in one pipeline must not leave its target without an agent.
async fn keep_running(shared: Arc<Shared>, name: PipelineName, wants: watch::Receiver<Wanted>, stop: CancellationToken) {
    let span = tracing::info_span!("pipeline", pipeline = %name, target = %shared.around.info.name);
    loop {
        let task = pipeline::run(shared.clone(), name.clone(), wants.clone(), stop.clone());
        match tokio::spawn(task.instrument(span.clone())).await {
            Ok(()) => return,
            Err(error) => tracing::error!(pipeline = %name, %error, "the task of a pipeline broke; it is started again"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(PANIC_PAUSE) => {}
        }
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> AgentError {
    let path = path.to_owned();
    move |source| AgentError::Io { what, path, source }
}

/// A folder through which services' users can pass, whatever the umask.
pub(super) fn make_open_folder(path: &Path) -> std::io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// Only what is private is closed.
fn make_folders(data_dir: &Path) -> Result<PathBuf, AgentError> {
    let make = |path: &Path| make_open_folder(path).map_err(io_error("creating", path));
    fs::create_dir_all(data_dir).map_err(io_error("creating", data_dir))?;
    let data_dir = data_dir.canonicalize().map_err(io_error("resolving", data_dir))?;
    make(&data_dir.join("current"))?;
    make(&data_dir.join("pipelines"))?;
    Ok(data_dir)
}

/// A few characters that stand for a data folder.
fn tag_of(data_dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    Digest::of(data_dir.as_os_str().as_bytes()).short()
}

/// The id of the agent that has this folder, made when there is none.
fn id_kept(path: &Path) -> Result<AgentId, AgentError> {
    match saved::load(path) {
        Ok(Some(id)) => return Ok(id),
        Ok(None) => {}
        Err(error @ SavedError::Damaged { .. }) => tracing::warn!(%error, "this agent takes a new id"),
        Err(error) => return Err(error.into()),
    }
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(AgentError::Random)?;
    let id = AgentId(hex::encode(bytes));
    // A full disk must not keep an agent away: the id of a former process matters only while its session seems to live.
    if let Err(error) = saved::save(path, &id) {
        tracing::warn!(%error, "this agent's id could not be kept");
    }
    Ok(id)
}

fn lock(data_dir: &Path) -> Result<Flock<File>, AgentError> {
    let path = data_dir.join("lock");
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(io_error("opening", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => AgentError::Locked(data_dir.to_owned()),
        errno => io_error("locking", &path)(errno.into()),
    })
}

fn is_isolated(allow_unisolated: bool) -> Result<bool, AgentError> {
    let report = isolation::probe();
    let missing = report.checks.iter().find(|check| NEEDED.contains(&check.name) && !check.ok);
    let Some(missing) = missing else { return Ok(true) };
    let why = format!("{}: {}", missing.name, missing.reason);
    if !allow_unisolated {
        return Err(AgentError::NotIsolated(why));
    }
    tracing::warn!(why, "INSTANCES ARE NOT ISOLATED: they run without limits, as this user, and can read and change what it can");
    Ok(false)
}

fn recorded_pipelines(data_dir: &Path) -> Result<BTreeSet<PipelineName>, AgentError> {
    let folder = data_dir.join("pipelines");
    let entries = fs::read_dir(&folder).map_err(io_error("reading", &folder))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_the_same_after_a_restart_and_another_in_another_folder() {
        let folder = tempfile::tempdir().unwrap();
        let id = |name: &str| id_kept(&folder.path().join(name)).unwrap();
        assert_eq!(id("one"), id("one"));
        assert_ne!(id("one"), id("two"));
        fs::write(folder.path().join("one"), "damaged").unwrap();
        assert_eq!((id("one").0.len(), id("one")), (32, id("one")), "a damaged id does not keep an agent away");
    }
}
