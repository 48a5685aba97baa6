//! One attempt of a build, from the checkout to the artifact: runs its phases, tells state how it stands, survives the death of the
//! server it runs in. Must not know how attempts are assigned, nor of Raft: it proposes through a narrow trait.
//!
//! - `folder`: what an attempt leaves on disk
//! - `run`: the attempt from its beginning, or from where it stood, to its end
//! - `checkout`, `phase`, `upload`: what it does on the way; `verdict`: what a phase's end means
//! - `log`: its log, while it is written and as it is read
//! - `report`: telling state, in order, again while no server leads
//! - `host`: a fingerprint of this machine
//!
//! After `kill -9` of the server at any moment the phase that ran goes on in its shim; [`Attempts::run`] with the same job adopts it. A phase that
//! ended is not run again. A checkout that was not finished is made anew. Storing is repeated: content has one name. That the attempt ended
//! is on disk before state is told, and is told until it is answered.
//!
//! A machine that restarted meanwhile is another matter: files that phases wrote may be missing. Such an attempt is lost.
//!
//! Crash points, in the order in which they are passed: `attempt::acknowledging`, `attempt::begun` (the folder exists),
//! `attempt::before_checkout`, `attempt::checked_out` (not yet recorded), `attempt::checkout_recorded`, for each phase that has a script
//! `attempt::before_phase`, `attempt::phase_recorded` (not yet started), `attempt::phase_started`, `attempt::phase_ended` (not yet recorded),
//! `attempt::phase_done`; then `attempt::packed`, `attempt::artifact_stored`, `attempt::manifest_stored`, `attempt::upload_done`,
//! `attempt::log_stored`, `attempt::end_recorded`, `attempt::end_told`; and `attempt::discarding` (the folder has lost its name).

mod checkout;
mod folder;
mod host;
mod log;
mod phase;
mod report;
mod run;
mod upload;
mod verdict;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::stream::BoxStream;
use tokio::{
    sync::{OwnedMutexGuard, watch},
    task::spawn_blocking,
};

pub use self::folder::FolderError;
use self::{folder::Folder, run::Run};
use swell_artifacts::store::ContentStore;
use swell_git::Mirrors;
use swell_model::{
    build::Build,
    ids::{BuildId, RunnerName},
    interfaces::{LogChunk, LogSource, Proposer},
    units::Timestamp,
};
use swell_sandbox::{
    isolation::Level,
    runtime::{self, ShimRuntime},
};
use swell_system::{error_chain::chain, files::failed};

/// Which attempt: a build, and the attempt's number from 1.
type AttemptKey = (BuildId, u32);

/// What one attempt holds while something works on it; what is done aside has a share, so that nobody else begins before that has ended.
type Hold = Arc<OwnedMutexGuard<()>>;

/// How often removing an attempt is tried, and how long between.
const DISCARD_TRIES: u32 = 3;
const DISCARD_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Where a commit is fetched from.
#[derive(Debug, Clone)]
pub struct GitSource {
    /// A path or an address that git can fetch from.
    pub url: String,
    /// What gives access, where that takes something.
    pub token: Option<String>,
}

/// What is to be run.
#[derive(Debug, Clone)]
pub struct AttemptJob {
    /// The build, as state has it.
    pub build: Build,
    /// Number of the attempt within the build.
    pub attempt: u32,
    /// The path of the pipeline file in the repository.
    pub file: String,
    /// Where the commit comes from, or why that is not known now.
    pub source: Result<GitSource, String>,
}

/// How attempts are run on this machine.
#[derive(Debug, Clone)]
pub struct AttemptsOptions {
    /// Where they are kept: in `attempts/` below. Belongs to one process at a time.
    pub data_dir: PathBuf,
    /// This runner's name, as state knows it.
    pub runner: RunnerName,
    /// Starts the shims that run phases.
    pub shim: ShimRuntime,
    /// What this machine allows: see [`super::isolation::probe`].
    pub isolation: Level,
    /// Whether phases may run as plain processes where the machine allows no better. For `swell dev` and the demo alone.
    pub allow_unisolated: bool,
}

/// Why attempts cannot be run here.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// Builds could do what they like to the machine.
    #[error(
        "builds cannot be isolated on this machine ({0}); `swell doctor` says what to change, and only `swell dev` runs them regardless"
    )]
    NotIsolated(String),
    /// The data folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The process is ending.
    #[error("the program is shutting down")]
    ShuttingDown,
}

/// The attempts of one runner. Cheap to clone.
#[derive(Clone)]
pub struct Attempts {
    inner: Arc<Inner>,
}

struct Inner {
    options: AttemptsOptions,
    /// Why phases are not isolated, where they are not.
    unisolated: Option<String>,
    /// The folder `attempts/` below `data_dir`.
    root: PathBuf,
    /// Tells this runner's control groups from those of another on the same machine.
    tag: String,
    content: Arc<dyn ContentStore>,
    mirrors: Mirrors,
    proposer: Arc<dyn Proposer>,
    /// One at a time works on an attempt. As many entries as there are attempts on disk.
    holds: Mutex<HashMap<AttemptKey, Arc<tokio::sync::Mutex<()>>>>,
}

impl Attempts {
    /// Opens the attempts in `options.data_dir`. Nothing is started or ended: what ran goes on until [`Attempts::run`] or
    /// [`Attempts::discard`] is called for it.
    ///
    /// # Errors
    /// Where builds cannot be isolated and that is not allowed; where the folder cannot be used.
    pub async fn open(
        options: AttemptsOptions,
        content: Arc<dyn ContentStore>,
        mirrors: Mirrors,
        proposer: Arc<dyn Proposer>,
    ) -> Result<Self, AttemptError> {
        let unisolated = match &options.isolation {
            Level::Full => None,
            Level::None { why } if options.allow_unisolated => Some(why.clone()),
            Level::None { why } => return Err(AttemptError::NotIsolated(why.clone())),
        };
        if let Some(why) = &unisolated {
            tracing::warn!(why, "builds are NOT isolated: their scripts run as plain processes of this user");
        }
        let data_dir = options.data_dir.clone();
        let prepared = spawn_blocking(move || {
            let root = data_dir.join("attempts");
            folder::make_dir(&root)?;
            folder::remove_leftovers(&root)?;
            Ok::<_, FolderError>(root.canonicalize().map_err(failed("resolve", &root))?)
        });
        let root = prepared.await.map_err(|_| AttemptError::ShuttingDown)??;
        let tag = swell_model::digest::Digest::of(root.as_os_str().as_encoded_bytes()).hex()[..8].to_owned();
        let holds = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { options, unisolated, root, tag, content, mirrors, proposer, holds }) })
    }

    /// The attempts of which something is on disk, such as after a restart, in order. Reads one folder.
    pub fn on_disk(&self) -> Vec<(BuildId, u32)> {
        let entries = std::fs::read_dir(&self.inner.root).into_iter().flatten().flatten();
        let mut keys: Vec<_> = entries.filter_map(|entry| folder::key_of(entry.file_name().to_str()?)).collect();
        keys.sort();
        keys
    }

    /// Runs an attempt to its end, from its beginning or from where it stood, and tells state. Returns when state knows how it ended, when
    /// state says that it is not the live one (then nothing of it is left), or when nobody could be told: then call again.
    ///
    /// `stopped` becoming true stops it: what runs is asked to end, then killed, and state is told that it was canceled.
    pub async fn run(&self, job: AttemptJob, stopped: watch::Receiver<bool>) {
        let key = (job.build.id, job.attempt);
        let hold = self.hold(key).await;
        let (build, attempt) = key;
        if let Err(why) = Run::new(self.inner.clone(), job, stopped, hold).until_its_end().await {
            tracing::warn!(%build, attempt, reason = why, "failed to report an attempt, taking it up again");
        }
    }

    /// Ends whatever runs of an attempt at once, and removes everything that it left.
    pub async fn discard(&self, build: BuildId, attempt: u32) {
        let key = (build, attempt);
        let hold = self.hold(key).await;
        self.inner.discard(key, hold).await;
        self.holds().remove(&key);
    }

    async fn hold(&self, key: AttemptKey) -> Hold {
        let lock = self.holds().entry(key).or_default().clone();
        Arc::new(lock.lock_owned().await)
    }

    fn holds(&self) -> std::sync::MutexGuard<'_, HashMap<AttemptKey, Arc<tokio::sync::Mutex<()>>>> {
        self.inner.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn folder(&self, key: AttemptKey) -> Folder {
        Folder::of(&self.root, key)
    }

    async fn discard(&self, key: AttemptKey, hold: Hold) {
        let folder = self.folder(key);
        for attempt in 1..=DISCARD_TRIES {
            match discard_once(&folder, hold.clone()).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::error!(error, folder = %folder.path().display(), attempt, "failed to remove an attempt")
                }
            }
            tokio::time::sleep(DISCARD_AGAIN_AFTER).await;
        }
    }
}

async fn discard_once(folder: &Folder, hold: Hold) -> Result<(), String> {
    let log = folder.log();
    let segments = spawn_blocking(move || log::segments(&log)).await.map_err(|error| error.to_string())?;
    for (_, _, dir) in segments {
        runtime::clear(&dir).await.map_err(|error| chain(&error))?;
    }
    let folder = folder.clone();
    let removed = spawn_blocking(move || {
        let _held = hold;
        folder.remove()
    });
    removed.await.map_err(|error| error.to_string())?.map_err(|error| chain(&error))
}

impl LogSource for Attempts {
    fn follow(&self, build: BuildId, attempt: u32, start: u64) -> Option<BoxStream<'static, LogChunk>> {
        let folder = self.inner.folder((build, attempt));
        folder.exists().then(|| log::follow(folder, start))
    }
}

/// The machine's clock: for what people see, never for what is decided.
fn now() -> Timestamp {
    Timestamp(swell_system::clock::unix_ms())
}
