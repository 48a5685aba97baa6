//! The moment between "git has received a push" and "git accepts it": the pre-receive hook asks us, we make the push durable and
//! agreed through the [`PushSink`], and only then does git go on. Knows neither where bundles are kept nor how refs are agreed.
//!
//! The hook speaks over a socket that it inherits as descriptor 3 through git's own processes. So when this process dies, the
//! hook reads an end and refuses; and when all of git's processes have ended, we read an end and let the next push in.

use std::{
    collections::BTreeSet,
    os::{fd::AsRawFd as _, unix::net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::Command,
    sync::OwnedSemaphorePermit,
};

use crate::{RepositoryState, hosted::Cache};
use swell_git::{
    GitError,
    bundle::{self, Quarantine},
    command::{Git, NETWORK_TIMEOUT, local_refs},
    leftovers,
    names::{exclude_each_other, is_ref_name, parse_or_none},
};
use swell_model::{
    digest::Digest,
    ids::RepositoryName,
    interfaces::ProposeError,
    rejection::Rejection,
    repository::{CommitId, RefUpdate},
};

/// The most refs that one push may change: they are one command of the state machine.
pub const UPDATES_MAX: usize = 500;
/// The most bytes that the hook may send: [`UPDATES_MAX`] lines of two ids and a name.
const HOOK_BYTES_MAX: u64 = 1 << 20;
/// How long storing a bundle and agreeing on the refs may take before the pusher is told to try again.
const SINK_TIMEOUT: Duration = Duration::from_secs(120);
/// How long git's processes may take to end once they have our answer.
const END_TIMEOUT: Duration = Duration::from_secs(60);
const SOCKET_IN_HOOK: i32 = 3;

/// What git runs before it accepts a push. Plain sh, so that it starts in a millisecond and needs no version of ours.
pub(super) const PRE_RECEIVE: &str = "\
#!/bin/sh
# Written by Groundswell at each start. Asks the server that runs this git whether the push is accepted.
[ \"${GROUNDSWELL_PUSH:-}\" = 3 ] || { echo 'push to the address of a Groundswell server, not into its cache' >&2; exit 1; }
{ printf '%s\\n' \"${GIT_QUARANTINE_PATH:-}\"; cat; printf '\\n'; } >&3 || exit 1
IFS= read -r verdict <&3 || { echo 'the server went away: push again' >&2; exit 1; }
while IFS= read -r line <&3; do printf '%s\\n' \"$line\" >&2; done
[ \"$verdict\" = accepted ]
";

/// A push that git has received and checked, and that waits to be accepted.
#[derive(Debug, Clone)]
pub struct PushRequest {
    pub repository: RepositoryName,
    /// All or none of these are to be applied; between 1 and [`UPDATES_MAX`], no name twice. `old` is what the pusher saw. A
    /// tag may point at a tag's own object, a branch always points at a commit.
    pub updates: Vec<RefUpdate>,
    /// The new objects as a git bundle; nothing where the push brings none. Removed after [`PushSink::push`] has returned.
    pub bundle_path: Option<PathBuf>,
    /// Who pushes, as the caller of [`super::HostedRepositories::serve`] named them.
    pub pusher: String,
}

/// Why a [`PushSink`] did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The cluster refuses the push, now and when it is repeated unchanged.
    #[error("{0}")]
    Refused(Rejection),
    /// The cluster did not agree in time, or is not reachable; whether the push was applied is not known. Pushing again is safe.
    #[error("{0}")]
    Undecided(ProposeError),
    /// Reading or keeping something failed.
    #[error("failed to {tried}: {cause}")]
    Failed {
        /// The verb and its object.
        tried: &'static str,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl SinkError {
    /// For what failed while `tried` was tried.
    pub fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(tried: &'static str) -> impl FnOnce(E) -> Self {
        move |cause| Self::Failed { tried, cause: cause.into() }
    }

    /// What the pusher is shown: why not, and what to do.
    fn for_pusher(&self) -> String {
        match self {
            Self::Refused(rejection) => format!("{self}: {}", rejection.hint()),
            Self::Undecided(_) | Self::Failed { .. } => format!("{self}: push again"),
        }
    }
}

/// Where pushes become durable and agreed, and where the truth about a repository is read from.
pub trait PushSink: Send + Sync + 'static {
    /// Stores the bundle durably, then changes all refs if each still is `old`. Returns a line for the pusher on what happens
    /// now, which may be empty. A push that is repeated after it was applied should be accepted again.
    ///
    /// # Errors
    /// [`SinkError::Refused`] where nothing changed; after the others that may be unknown.
    fn push(&self, request: PushRequest) -> BoxFuture<'_, Result<String, SinkError>>;

    /// The refs as agreed, read no earlier than now; nothing for an unknown name.
    fn state<'a>(&'a self, repository: &'a RepositoryName) -> BoxFuture<'a, Result<Option<RepositoryState>, SinkError>>;

    /// What pushes brought, the oldest first: each builds on those before it. At least what held the objects of the refs when they
    /// were read last. Asked only where objects are missing.
    fn bundles<'a>(&'a self, repository: &'a RepositoryName) -> BoxFuture<'a, Result<Vec<Digest>, SinkError>>;

    /// Writes a bundle's bytes, verified against its digest, to the new file `destination`.
    fn bundle<'a>(&'a self, bundle: &'a Digest, destination: &'a Path) -> BoxFuture<'a, Result<(), SinkError>>;
}

/// One run of git that may bring a push.
pub(super) struct PushSession {
    pub git: Git,
    pub git_dir: PathBuf,
    /// Folder that holds bundles and nothing else.
    pub incoming: PathBuf,
    pub repository: RepositoryName,
    pub pusher: String,
    pub sink: Arc<dyn PushSink>,
    pub cache: Cache,
}

/// A request of the `pre-receive` hook: the refs to be moved.
struct HookRequest {
    quarantine: Option<PathBuf>,
    updates: Vec<RefUpdate>,
}

impl PushSession {
    /// Lets `command` inherit the hook's socket, and answers on it in a task of its own: a pusher who leaves must not leave a
    /// half-made decision. The command must be spawned and dropped soon, as it holds the other end.
    pub async fn attach(self, command: &mut Command) -> Result<(), GitError> {
        let ours_and_theirs = StdUnixStream::pair().and_then(|(ours, theirs)| {
            ours.set_nonblocking(true)?;
            Ok((UnixStream::from_std(ours)?, theirs))
        });
        let (ours, theirs) = ours_and_theirs.map_err(GitError::Start)?;
        command.env("GROUNDSWELL_PUSH", SOCKET_IN_HOOK.to_string());
        // Moves `theirs` to descriptor 3 in the child, without the flag that would close it there.
        let inherit = move || {
            let fd = theirs.as_raw_fd();
            // SAFETY: only descriptor numbers go in, and both calls are async-signal-safe (signal-safety(7)).
            let result = unsafe {
                if fd == SOCKET_IN_HOOK {
                    nix::libc::fcntl(fd, nix::libc::F_SETFD, 0)
                } else {
                    nix::libc::dup2(fd, SOCKET_IN_HOOK)
                }
            };
            if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        };
        // SAFETY: the closure allocates nothing and takes no lock; it runs between fork and exec.
        unsafe { command.pre_exec(inherit) };
        let receiving = Arc::clone(&self.cache.receiving).read_owned().await;
        tokio::spawn(async move {
            let (reader, writer) = ours.into_split();
            let mut reader = BufReader::new(reader);
            // The pack is received before the hook runs, and that takes as long as the pusher's line is slow. It ends with git.
            if let Err(error) = reader.fill_buf().await {
                tracing::debug!(%error, "push ended before the hook ran");
            }
            let answer = self.attend(&mut reader, writer);
            let answered = tokio::time::timeout(NETWORK_TIMEOUT + SINK_TIMEOUT + END_TIMEOUT, answer).await;
            if answered.is_err() {
                tracing::warn!(repository = %self.repository, "push did not end in time");
            }
            until_end(&mut reader).await;
            drop(receiving);
            // Where others push, the last of them does it.
            if let Ok(_alone) = self.cache.receiving.try_write() {
                leftovers::remove_pushes(&self.git_dir).await;
            }
            if answered == Ok(true) {
                self.tidy().await;
            }
        });
        Ok(())
    }

    /// Whether a push was answered, from when the hook speaks until git has ended.
    async fn attend(&self, reader: &mut BufReader<OwnedReadHalf>, mut writer: OwnedWriteHalf) -> bool {
        let request = match read_hook(reader).await {
            Ok(Some(request)) => request,
            Ok(None) => {
                // Git refused by itself, or the pusher left: perhaps for what the cache lacks.
                self.cache.suspect.store(true, Ordering::Relaxed);
                return false;
            }
            Err(why) => {
                send(&mut writer, "refused", &why).await;
                return false;
            }
        };
        let Ok(permit) = Arc::clone(&self.cache.changing).acquire_owned().await else { return false };
        let updates = request.updates.len();
        let (verdict, words) = match self.decide(request).await {
            Ok(words) => ("accepted", words),
            Err(words) => ("refused", words),
        };
        tracing::info!(repository = %self.repository, pusher = %self.pusher, updates, verdict, "push answered");
        send(&mut writer, verdict, &words).await;
        drop(writer);
        self.wait_for_end(reader, permit).await;
        true
    }

    /// Git now moves the objects in and changes its refs; nobody else may touch them until its processes have ended.
    async fn wait_for_end(&self, reader: &mut BufReader<OwnedReadHalf>, permit: OwnedSemaphorePermit) {
        if tokio::time::timeout(END_TIMEOUT, until_end(reader)).await.is_err() {
            tracing::warn!(repository = %self.repository, "git still runs after the push was answered");
        }
        drop(permit);
    }

    /// Packs what many small pushes left; git decides whether there is enough.
    async fn tidy(&self) {
        let tidy = self.git.command("tidying up").in_repository(&self.git_dir).args(["gc", "--auto", "--quiet"]);
        if let Err(error) = tidy.timeout(NETWORK_TIMEOUT).run_ok().await {
            tracing::warn!(%error, repository = %self.repository, "failed to tidy the cache of a repository");
        }
    }

    /// Checks what the state machine cannot, makes the bundle, and asks the sink.
    async fn decide(&self, request: HookRequest) -> Result<String, String> {
        let refs = local_refs(&self.git, &self.git_dir).await.map_err(|error| self.broken(error))?;
        check_names(&request.updates, refs.iter().map(|(name, _)| name.as_str()))?;
        let quarantine = self.quarantine(request.quarantine)?;
        self.check_branches_are_commits(&request.updates, &quarantine).await?;

        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = self.incoming.join(format!("{}-{}-{number}.bundle", self.repository, std::process::id()));
        let _removed_at_the_end = RemoveFile(path.clone());
        let existing: BTreeSet<CommitId> = refs.into_iter().map(|(_, id)| id).collect();
        let written = bundle::write(&self.git, &self.git_dir, &quarantine, &request.updates, &existing, &path).await;
        let bundle_path = written.map_err(|error| self.broken(error))?.then_some(path);

        let push = PushRequest {
            repository: self.repository.clone(),
            updates: request.updates,
            bundle_path,
            pusher: self.pusher.clone(),
        };
        match tokio::time::timeout(SINK_TIMEOUT, self.sink.push(push)).await {
            Ok(answer) => answer.map_err(|error| error.for_pusher()),
            Err(_) => Err(format!(
                "the cluster did not agree within {} s; fetch to see whether it did since, and push again",
                SINK_TIMEOUT.as_secs()
            )),
        }
    }

    fn broken(&self, error: GitError) -> String {
        self.cache.suspect.store(true, Ordering::Relaxed);
        format!("{error}; push again")
    }

    fn quarantine(&self, path: Option<PathBuf>) -> Result<Quarantine, String> {
        let objects = self.git_dir.join("objects");
        // A push that only deletes has no quarantine.
        let Some(path) = path else { return Ok(Quarantine { env: Vec::new() }) };
        let path = if path.is_absolute() { path } else { self.git_dir.join(path) };
        Ok(Quarantine {
            env: vec![
                ("GIT_OBJECT_DIRECTORY", path.clone()),
                ("GIT_QUARANTINE_PATH", path),
                ("GIT_ALTERNATE_OBJECT_DIRECTORIES", objects),
            ],
        })
    }

    /// Git finds this out only after the hook, when we have agreed already.
    async fn check_branches_are_commits(&self, updates: &[RefUpdate], quarantine: &Quarantine) -> Result<(), String> {
        let new: Vec<(&str, &CommitId)> = updates.iter().filter_map(|u| Some((u.name.as_str(), u.new.as_ref()?))).collect();
        let ids: String = new.iter().map(|(_, id)| format!("{id}\n")).collect();
        let check =
            self.git.command("looking at what was pushed").in_repository(&self.git_dir).envs(quarantine.env.iter().cloned());
        let check = check.args(["cat-file", "--batch-check=%(objecttype)"]).stdin(ids);
        let types = check.run_ok().await.map_err(|error| self.broken(error))?;
        let types = String::from_utf8_lossy(&types);
        for ((name, id), kind) in new.iter().zip(types.lines()) {
            if name.starts_with("refs/heads/") && kind != "commit" {
                return Err(format!("`{name}` would be {} ({kind}): a branch must be a commit", id.short()));
            }
        }
        Ok(())
    }
}

/// Until all of git's processes have ended.
async fn until_end(reader: &mut BufReader<OwnedReadHalf>) {
    let mut nothing = [0; 64];
    while let Ok(1..) = reader.read(&mut nothing).await {}
}

async fn read_hook(reader: &mut BufReader<tokio::net::unix::OwnedReadHalf>) -> Result<Option<HookRequest>, String> {
    let mut lines = reader.take(HOOK_BYTES_MAX).lines();
    let mut next = async || lines.next_line().await.map_err(|error| format!("the push could not be read: {error}"));
    let Some(quarantine) = next().await? else { return Ok(None) };
    let quarantine = Some(quarantine).filter(|path| !path.is_empty()).map(PathBuf::from);
    let mut updates = Vec::new();
    while let Some(line) = next().await? {
        if line.is_empty() {
            return Ok(Some(HookRequest { quarantine, updates }));
        }
        updates.push(parse_update(&line).ok_or_else(|| format!("`{line}` is no change of a ref"))?);
    }
    Err(format!("a push may change at most {UPDATES_MAX} refs: push in several parts"))
}

/// A line for git's pre-receive hook: old id, new id, name (githooks(5)).
fn parse_update(line: &str) -> Option<RefUpdate> {
    let mut fields = line.splitn(3, ' ');
    let old = parse_or_none(fields.next()?).ok()?;
    let new = parse_or_none(fields.next()?).ok()?;
    Some(RefUpdate { name: fields.next()?.to_owned(), old, new })
}

/// Refuses what git would refuse only after the hook, and what is not a branch or a tag.
fn check_names<'a>(updates: &'a [RefUpdate], existing: impl Iterator<Item = &'a str>) -> Result<(), String> {
    if updates.is_empty() || updates.len() > UPDATES_MAX {
        return Err(format!("a push may change at most {UPDATES_MAX} refs: push in several parts"));
    }
    let mut seen = BTreeSet::new();
    for RefUpdate { name, .. } in updates {
        let is_ours = name.starts_with("refs/heads/") || name.starts_with("refs/tags/");
        if !is_ours || !is_ref_name(name) {
            return Err(format!("`{name}` is not kept here: push to `refs/heads/…` or `refs/tags/…`"));
        }
        if !seen.insert(name.as_str()) {
            return Err(format!("`{name}` is changed twice in one push"));
        }
    }
    let deleted: BTreeSet<&str> = updates.iter().filter(|u| u.new.is_none()).map(|u| u.name.as_str()).collect();
    let kept: Vec<&str> = existing.chain(seen.iter().copied()).filter(|name| !deleted.contains(name)).collect();
    for update in updates.iter().filter(|update| update.new.is_some()) {
        // Also against what is deleted in the same push: git does not do both in one transaction.
        let others = kept.iter().chain(&deleted).filter(|other| exclude_each_other(other, &update.name));
        if let Some(other) = others.into_iter().next() {
            return Err(format!(
                "`{}` cannot exist beside `{other}`: delete that one first, in a push of its own, or choose another name",
                update.name
            ));
        }
    }
    Ok(())
}

/// Tells the hook; when it is gone, so is the pusher, and git has refused already.
async fn send(writer: &mut OwnedWriteHalf, verdict: &str, words: &str) {
    let mut answer = format!("{verdict}\n");
    for line in words.lines() {
        answer.push_str(line);
        answer.push('\n');
    }
    let written = tokio::time::timeout(END_TIMEOUT, async {
        writer.write_all(answer.as_bytes()).await?;
        writer.shutdown().await
    });
    if !matches!(written.await, Ok(Ok(()))) {
        tracing::info!(verdict, "pusher left before the answer");
    }
}

struct RemoveFile(PathBuf);

impl Drop for RemoveFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.0.display(), "failed to remove a bundle");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn update(name: &str, new: bool) -> RefUpdate {
        let id: CommitId = "4b825dc642cb6eb9a060e54bf8d69288fbee4904".parse().unwrap();
        RefUpdate { name: name.to_owned(), old: None, new: new.then_some(id) }
    }

    #[test]
    fn names_that_git_would_refuse_later_are_refused_first() {
        let check = |updates: &[RefUpdate]| check_names(updates, ["refs/heads/a"].into_iter());
        assert!(check(&[update("refs/heads/b", true), update("refs/tags/a/x", true)]).is_ok());
        assert!(check(&[update("refs/heads/a", false)]).is_ok());
        for bad in ["refs/heads/a/b", "refs/notes/x", "HEAD", "refs/heads/x..y"] {
            assert!(check(&[update(bad, true)]).is_err(), "{bad}");
        }
        assert!(check(&[update("refs/heads/a", false), update("refs/heads/a/b", true)]).unwrap_err().contains("of its own"));
        assert!(check(&[update("refs/heads/x", true), update("refs/heads/x/y", true)]).is_err());
        assert!(check(&[]).is_err());
    }
}
