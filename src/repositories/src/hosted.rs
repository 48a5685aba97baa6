//! Repositories that Groundswell hosts: the refs are state and the objects are bundles, both kept elsewhere; what lies on disk here
//! is a cache that can be thrown away. Knows neither Raft nor the content store: it asks a [`PushSink`].
//!
//! Refs in a cache change in two ways, never at once (`changing`): a push that was accepted, and catching up with state.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Display,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hyper::{Method, Request, Response, StatusCode, body::Body, header::CONTENT_LENGTH};
use tokio::sync::{RwLock, Semaphore};

use crate::{
    GitBody, PushSink, cgi,
    push::{PRE_RECEIVE, PushSession},
};
use swell_git::{
    GitError, bundle,
    command::{Git, local_refs},
    leftovers,
};
use swell_model::{digest::Digest, ids::RepositoryName, repository::CommitId};
use swell_system::disk_space::{self, NoSpace, Room};

/// Most fetches and pushes that run at once; further ones wait.
const RUNNING_MAX: usize = 64;
/// How long a request waits for its turn before it is refused as busy.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest pack that one push may send, in bytes.
const PUSH_BYTES_MAX: u64 = 4 << 30;
/// The least that a push may need, in bytes.
const PUSH_BYTES_MIN: u64 = 1 << 20;
/// How often a push is on the disk before git answers: as git received it, as a bundle, and in the content store, which may share the disk.
const PUSH_COPIES: u64 = 3;
/// The file in a cache that lists the bundles it has taken in, by their hexadecimal digests.
const APPLIED: &str = "groundswell-bundles";

/// Refs of a hosted repository, as agreed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepositoryState {
    /// Branches and tags by full name.
    pub refs: BTreeMap<String, CommitId>,
    /// The branch that a clone checks out, without `refs/heads/`; it need not exist yet.
    pub default_branch: String,
}

/// What a client may do; the caller has checked it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Fetch and clone.
    Read,
    /// Fetch, clone and push.
    Write {
        /// Who pushes, for the event log.
        pusher: String,
    },
}

/// Locks and marks of a repository's cache on disk.
#[derive(Clone)]
pub(super) struct Cache {
    /// The right to change its refs.
    pub changing: Arc<Semaphore>,
    /// Held by each push that git receives; whoever has it alone may remove what was not accepted.
    pub receiving: Arc<RwLock<()>>,
    /// Set when git failed in it: it is looked through before it is used again.
    pub suspect: Arc<AtomicBool>,
}

/// The repositories that this server's users fetch from and push to. Cheap to clone.
#[derive(Clone)]
pub struct HostedRepositories {
    root: PathBuf,
    git: Git,
    sink: Arc<dyn PushSink>,
    /// As many entries as there are repositories.
    caches: Arc<Mutex<HashMap<RepositoryName, Cache>>>,
    running: Arc<Semaphore>,
    /// How much room there is at a path.
    pub(super) room: fn(&Path) -> std::io::Result<Room>,
}

impl HostedRepositories {
    /// Keeps caches below `root`, which is created. Left-overs of an earlier process are removed. Errors: the disk.
    pub async fn open(root: impl Into<PathBuf>, sink: Arc<dyn PushSink>) -> Result<Self, GitError> {
        let root = std::path::absolute(root.into()).map_err(GitError::io("locate", "the repositories' folder"))?;
        let git = Git::with_config_in(&root).await?;
        let running = Arc::new(Semaphore::new(RUNNING_MAX));
        let hosted = Self { root, git, sink, caches: Arc::default(), running, room: disk_space::room };
        remove_folder(&hosted.incoming()).await?;
        leftovers::remove_all(&hosted.root).await?;
        for folder in [hosted.incoming(), hosted.hooks()] {
            tokio::fs::create_dir_all(&folder).await.map_err(GitError::io("create", &folder))?;
        }
        let hook = hosted.hooks().join("pre-receive");
        let new = hosted.hooks().join("pre-receive.new");
        tokio::fs::write(&new, PRE_RECEIVE).await.map_err(GitError::io("write", &new))?;
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        tokio::fs::set_permissions(&new, executable).await.map_err(GitError::io("change", &new))?;
        tokio::fs::rename(&new, &hook).await.map_err(GitError::io("write", &hook))?;
        Ok(hosted)
    }

    // Names of repositories do not begin with a dot, so these collide with none.
    fn incoming(&self) -> PathBuf {
        self.root.join(".incoming")
    }

    fn hooks(&self) -> PathBuf {
        self.root.join(".hooks")
    }

    fn git_dir(&self, name: &RepositoryName) -> PathBuf {
        self.root.join(format!("{name}.git"))
    }

    pub(super) fn cache(&self, name: &RepositoryName) -> Cache {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Cache { changing: Arc::new(Semaphore::new(1)), receiving: Arc::default(), suspect: Arc::default() };
        caches.entry(name.clone()).or_insert_with(new).clone()
    }

    /// Whether a request needs [`Access::Write`], so that the caller can ask for credentials first.
    pub fn is_push(sub_path: &str, query: Option<&str>) -> bool {
        sub_path == "git-receive-pack"
            || (sub_path == "info/refs"
                && query.is_some_and(|query| query.split('&').any(|pair| pair == "service=git-receive-pack")))
    }

    /// Answers one request of git's smart HTTP protocol (gitprotocol-http(5)). `sub_path` is what follows the repository in the
    /// path: `info/refs`, `git-upload-pack` or `git-receive-pack`. Errors become answers that git shows to its user.
    pub async fn serve<B>(&self, name: &RepositoryName, sub_path: &str, access: Access, request: Request<B>) -> Response<GitBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Display + Send,
    {
        let method = match sub_path {
            "info/refs" => Method::GET,
            "git-upload-pack" | "git-receive-pack" => Method::POST,
            _ => {
                return cgi::plain(
                    StatusCode::NOT_FOUND,
                    "this is a git repository: use `git clone`, `git fetch` and `git push`",
                );
            }
        };
        if request.method() != method {
            return cgi::plain(StatusCode::METHOD_NOT_ALLOWED, format!("`{sub_path}` takes {method} only"));
        }
        let is_push = Self::is_push(sub_path, request.uri().query());
        let pusher = match access {
            Access::Write { pusher } => Some(pusher),
            Access::Read if is_push => {
                return cgi::plain(
                    StatusCode::FORBIDDEN,
                    format!("you may fetch from `{name}`, not push: ask for a token that may deploy"),
                );
            }
            Access::Read => None,
        };
        match self.answer(name, sub_path, pusher.filter(|_| is_push), request).await {
            Ok(response) => response,
            Err(error) => {
                tracing::warn!(%error, repository = %name, sub_path, "failed to serve a repository");
                let status = match error {
                    GitError::NoRepository { .. } => StatusCode::NOT_FOUND,
                    GitError::TimedOut { .. } | GitError::State { .. } => StatusCode::SERVICE_UNAVAILABLE,
                    GitError::NoSpace(_) => StatusCode::INSUFFICIENT_STORAGE,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                cgi::plain(status, error.to_string())
            }
        }
    }

    async fn answer<B>(
        &self,
        name: &RepositoryName,
        sub_path: &str,
        pusher: Option<String>,
        request: Request<B>,
    ) -> Result<Response<GitBody>, GitError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Display + Send,
    {
        let turn = tokio::time::timeout(TURN_TIMEOUT, Arc::clone(&self.running).acquire_owned()).await;
        let Ok(Ok(running)) = turn else {
            return Err(GitError::TimedOut { what: "waiting for other fetches and pushes".to_owned(), after: TURN_TIMEOUT });
        };
        let git_dir = self.catch_up(name).await?;
        let mut command = self.git.raw();
        command.arg("http-backend").env("GIT_PROJECT_ROOT", &self.root).env("GIT_HTTP_EXPORT_ALL", "1");
        cgi::describe(&mut command, &request, &format!("/{name}.git/{sub_path}"));
        if pusher.is_some() {
            // Git lets known users push, and this is enough for it to know; the name itself goes another way.
            command.env("REMOTE_USER", "pusher");
            // Said anew each time, and last: a push past our hook would be accepted by nobody.
            command
                .envs([("GIT_CONFIG_COUNT", "2"), ("GIT_CONFIG_KEY_0", "core.hooksPath")])
                .env("GIT_CONFIG_VALUE_0", self.hooks())
                .env("GIT_CONFIG_KEY_1", "receive.maxInputSize")
                .env("GIT_CONFIG_VALUE_1", self.push_bytes_max()?.to_string());
        }
        // Nothing is pushed in a probe, so nobody waits for what it brings.
        if let Some(pusher) = pusher.filter(|_| sub_path == "git-receive-pack" && !is_probe(&request)) {
            let session = PushSession {
                git: self.git.clone(),
                git_dir,
                incoming: self.incoming(),
                repository: name.clone(),
                pusher,
                sink: Arc::clone(&self.sink),
                cache: self.cache(name),
            };
            session.attach(&mut command).await?;
        }
        cgi::call(command, request.into_body(), running, self.cache(name).suspect, cgi::IDLE_TIMEOUT).await
    }

    /// How many bytes a push may send now. Errors: the disk is full, which git shows before it sends anything.
    fn push_bytes_max(&self) -> Result<u64, GitError> {
        let room = (self.room)(&self.root).map_err(GitError::io("ask for the space of", &self.root))?;
        let needed = PUSH_BYTES_MIN * PUSH_COPIES;
        if room.available < needed {
            return Err(NoSpace { needed: Some(needed), available: room.available, path: self.root.clone() }.into());
        }
        Ok(PUSH_BYTES_MAX.min(room.available / PUSH_COPIES))
    }

    /// Makes the cache what is agreed now, from bundles where objects are missing, from nothing where it is lost or broken;
    /// returns its folder, a bare repository that git can fetch from by path. Cheap when nothing changed.
    ///
    /// Errors: `NoRepository` for a name that state does not know; `State`; `Io`; `Failed` when the bundles do not hold the refs.
    pub async fn catch_up(&self, name: &RepositoryName) -> Result<PathBuf, GitError> {
        let cache = self.cache(name);
        let turn = tokio::time::timeout(TURN_TIMEOUT, cache.changing.acquire()).await;
        let Ok(Ok(_changing)) = turn else {
            return Err(GitError::TimedOut { what: format!("waiting for a push to `{name}`"), after: TURN_TIMEOUT });
        };
        // Read after the turn has come: a push that was just accepted is in it.
        let state = self.sink.state(name).await;
        let state = state
            .map_err(|error| GitError::State { what: format!("reading the refs of `{name}`"), detail: error.to_string() })?;
        let git_dir = self.git_dir(name);
        let Some(state) = state else {
            // Deleted, or never there: nothing may be served from an old cache.
            remove_folder(&git_dir).await?;
            return Err(GitError::NoRepository {
                url: name.to_string(),
                detail: "this cluster hosts none of that name".to_owned(),
            });
        };
        if cache.suspect.swap(false, Ordering::Relaxed) && !self.is_whole(&git_dir).await {
            tracing::warn!(repository = %name, "cache of the repository is broken, rebuilding it");
            remove_folder(&git_dir).await?;
        }
        let mut updated = self.update(name, &git_dir, &state).await;
        if let Err(GitError::Failed { .. }) = updated {
            // Nobody else changes refs now, so a lock that stands in the way was left by a git that was killed.
            leftovers::remove_locks(&git_dir).await;
            updated = self.update(name, &git_dir, &state).await;
        }
        match updated {
            Ok(()) => {}
            Err(error @ GitError::State { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, repository = %name, "failed to update the cache of the repository, rebuilding it");
                remove_folder(&git_dir).await?;
                self.update(name, &git_dir, &state).await?;
            }
        }
        Ok(git_dir)
    }

    async fn is_whole(&self, git_dir: &Path) -> bool {
        let check = self.git.command("checking a cache").in_repository(git_dir);
        match check.args(["fsck", "--connectivity-only", "--no-dangling", "--no-progress"]).run().await {
            Ok(output) => output.success,
            // Too large to be sure; what is missing shows again.
            Err(GitError::TimedOut { .. }) => true,
            Err(_) => false,
        }
    }

    async fn update(&self, name: &RepositoryName, git_dir: &Path, state: &RepositoryState) -> Result<(), GitError> {
        self.create(git_dir, &state.default_branch).await?;
        let present: BTreeMap<String, CommitId> = local_refs(&self.git, git_dir).await?.into_iter().collect();
        if present == state.refs {
            return Ok(());
        }
        let changed: Vec<(&String, &CommitId)> = state.refs.iter().filter(|(name, id)| present.get(*name) != Some(id)).collect();
        let wanted: BTreeSet<&CommitId> = changed.iter().map(|(_, id)| *id).collect();
        if !self.has_all(git_dir, &wanted, &present).await? {
            let bundles = self.sink.bundles(name).await;
            let bundles = bundles.map_err(|error| GitError::State {
                what: format!("reading the bundles of `{name}`"),
                detail: error.to_string(),
            })?;
            self.apply_bundles(git_dir, &bundles).await?;
            if !self.has_all(git_dir, &wanted, &present).await? {
                let detail = "objects of its refs are in none of its bundles".to_owned();
                return Err(GitError::Failed { what: "rebuilding a repository".to_owned(), detail });
            }
        }
        // First what goes: a name may stand in the way of a new one.
        let gone: String =
            present.keys().filter(|name| !state.refs.contains_key(*name)).map(|name| format!("delete {name}\n")).collect();
        let new: String = changed.iter().map(|(name, id)| format!("update {name} {id}\n")).collect();
        for commands in [gone, new] {
            if !commands.is_empty() {
                let update = self.git.command("changing refs").in_repository(git_dir).args(["update-ref", "--stdin"]);
                update.stdin(commands).run_ok().await?;
            }
        }
        Ok(())
    }

    async fn create(&self, git_dir: &Path, default_branch: &str) -> Result<(), GitError> {
        let head = tokio::fs::read_to_string(git_dir.join("HEAD")).await.unwrap_or_default();
        if head.trim_end() == format!("ref: refs/heads/{default_branch}") {
            return Ok(());
        }
        let init = self.git.command("creating a repository").args([
            "init",
            "--quiet",
            "--bare",
            "--template=",
            "--initial-branch=not-ready",
        ]);
        init.args([git_dir]).run_ok().await?;
        let settings = [
            ("core", "logAllRefUpdates = false"),
            ("http", "getanyfile = false"),
            // Whether a branch may be deleted or rewound is for the sink to say.
            ("receive", "denyDeletes = false"),
            ("receive", "denyNonFastForwards = false"),
            ("receive", "denyDeleteCurrent = ignore"),
            ("receive", "autogc = false"),
            // Objects that could harm a check-out are refused; harmless old mistakes are not.
            ("receive", "fsckObjects = true"),
            ("receive \"fsck\"", "zeroPaddedFilemode = warn"),
            ("receive \"fsck\"", "missingSpaceBeforeDate = warn"),
            ("receive \"fsck\"", "badTimezone = warn"),
            // A commit can still be built when its branch is gone.
            ("uploadpack", "allowAnySHA1InWant = true"),
            ("uploadpack", "allowFilter = true"),
        ];
        let path = git_dir.join("config");
        let mut config = tokio::fs::read_to_string(&path).await.map_err(GitError::io("read", &path))?;
        for (section, setting) in settings {
            config.push_str(&format!("[{section}]\n\t{setting}\n"));
        }
        tokio::fs::write(&path, config).await.map_err(GitError::io("write", &path))?;
        // Last, since its presence says that the rest is done.
        let head = self.git.command("naming the default branch").in_repository(git_dir);
        head.args(["symbolic-ref", "HEAD", &format!("refs/heads/{default_branch}")]).run_ok().await?;
        Ok(())
    }

    /// Whether everything that `wanted` leads to is there; what refs have already is taken as whole.
    async fn has_all(
        &self,
        git_dir: &Path,
        wanted: &BTreeSet<&CommitId>,
        present: &BTreeMap<String, CommitId>,
    ) -> Result<bool, GitError> {
        let wanted = wanted.iter().map(|id| format!("{id}\n"));
        let revisions: String = wanted.chain(present.values().map(|id| format!("^{id}\n"))).collect();
        let walk =
            self.git.command("looking for objects").in_repository(git_dir).args(["rev-list", "--objects", "--quiet", "--stdin"]);
        Ok(walk.stdin(revisions).run().await?.success)
    }

    async fn apply_bundles(&self, git_dir: &Path, bundles: &[Digest]) -> Result<(), GitError> {
        let list_path = git_dir.join(APPLIED);
        let mut list = tokio::fs::read_to_string(&list_path).await.unwrap_or_default();
        let applied: BTreeSet<String> = list.lines().map(str::to_owned).collect();
        for digest in bundles.iter().filter(|digest| !applied.contains(&digest.hex())) {
            let path = self.incoming().join(format!("{}-{}", digest.hex(), std::process::id()));
            let got = self.sink.bundle(digest, &path).await;
            let result = match got {
                Ok(()) => bundle::apply(&self.git, git_dir, &path).await,
                Err(detail) => {
                    Err(GitError::State { what: format!("fetching the bundle {}", digest.short()), detail: detail.to_string() })
                }
            };
            if let Err(error) = tokio::fs::remove_file(&path).await
                && result.is_ok()
            {
                tracing::warn!(%error, path = %path.display(), "a bundle is left behind");
            }
            result?;
            list.push_str(&digest.hex());
            list.push('\n');
        }
        // Not synced: whoever reads a shorter list takes a bundle in twice, which is harmless.
        tokio::fs::write(&list_path, list).await.map_err(GitError::io("write", &list_path))
    }
}

/// Whether git only tries whether it may push, as it does before a large push: one flush packet, `0000` (remote-curl.c).
fn is_probe<B>(request: &Request<B>) -> bool {
    request.headers().get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() == b"4")
}

async fn remove_folder(path: &Path) -> Result<(), GitError> {
    match tokio::fs::remove_dir_all(path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(GitError::io("remove", path)(error)),
        _ => Ok(()),
    }
}
