//! Mirrors of remote repositories: fetched once a machine, then read locally. Knows nothing of builds.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use tokio::sync::Semaphore;

use crate::{
    command::{Git, Invocation, NETWORK_TIMEOUT},
    error::{GitError, without_credentials},
    leftovers,
};
use swell_model::{digest::Digest, repository::CommitId};

/// Time to list a repository's refs, which is done often and for many repositories.
const LISTING_TIMEOUT: Duration = Duration::from_secs(60);
/// The most bytes of such a listing: about 500,000 refs.
const LISTING_BYTES_MAX: usize = 64 << 20;
/// The most bytes of the paths that one push changed; more cannot be filtered.
const CHANGED_PATHS_BYTES_MAX: usize = 16 << 20;

/// The mirrors of one machine, below one folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mirrors {
    root: PathBuf,
    git: Git,
    /// One fetch at a time for each mirror. As many entries as there are repositories.
    fetching: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
}

/// Refs of a remote repository, as `git ls-remote` lists them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteRefs {
    /// The branch that `HEAD` names, such as `refs/heads/main`.
    pub head: Option<String>,
    /// Branches and tags by full name, each with its commit (annotated tags are resolved).
    pub refs: Vec<(String, CommitId)>,
}

/// A folder with exactly the files of one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkout {
    pub commit: CommitId,
    /// When it was committed, seconds since 1970: `SOURCE_DATE_EPOCH`.
    pub committed_at_s: u64,
}

/// One repository's bare mirror on this machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mirror {
    url: String,
    token: Option<String>,
    git_dir: PathBuf,
    git: Git,
    fetching: Arc<Semaphore>,
}

impl Mirrors {
    /// Keeps mirrors below `root`, which is created. Errors: the disk.
    pub async fn open(root: impl Into<PathBuf>) -> Result<Self, GitError> {
        let root = std::path::absolute(root.into()).map_err(GitError::io("locate", "the mirrors' folder"))?;
        let git = Git::with_config_in(&root).await?;
        Ok(Self { root, git, fetching: Arc::default() })
    }

    /// The mirror of the repository at `url` (https, http, ssh, git, file or a path), empty at first. `token` goes to http and
    /// https addresses alone, as the password of basic authentication, and never onto a command line or a disk.
    ///
    /// Errors: an address that git must not see; the disk.
    pub async fn of(&self, url: &str, token: Option<String>) -> Result<Mirror, GitError> {
        check_url(url)?;
        let name = Digest::of(without_credentials(url).as_bytes()).hex()[..32].to_owned();
        let git_dir = self.root.join(format!("{name}.git"));
        let fetching = {
            let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(fetching.entry(name).or_insert_with(|| Arc::new(Semaphore::new(1))))
        };
        let mirror = Mirror { url: url.to_owned(), token, git_dir, git: self.git.clone(), fetching };
        mirror.create().await?;
        Ok(mirror)
    }

    /// What the repository at `url` has now, without fetching it: for polling. Errors: as of [`Mirror::fetch`].
    pub async fn ls_remote(&self, url: &str, token: Option<&str>) -> Result<RemoteRefs, GitError> {
        check_url(url)?;
        let listing = self.git.command("listing its refs").args([
            "ls-remote",
            "--symref",
            "--",
            url,
            "HEAD",
            "refs/heads/*",
            "refs/tags/*",
        ]);
        let listing = listing.envs(credentials(url, token)).timeout(LISTING_TIMEOUT).stdout_bytes_max(LISTING_BYTES_MAX);
        Ok(parse_listing(&String::from_utf8_lossy(&ask_remote(listing, url, "listing its refs").await?)))
    }
}

/// `ref: refs/heads/main\tHEAD`, then lines of id, tab, name; `name^{}` is what the tag `name` points to.
fn parse_listing(listing: &str) -> RemoteRefs {
    let mut found = RemoteRefs::default();
    for line in listing.lines() {
        let Some((left, name)) = line.split_once('\t') else { continue };
        if let Some(branch) = left.strip_prefix("ref: ") {
            found.head = Some(branch.to_owned());
        } else if let Ok(id) = left.parse::<CommitId>() {
            match (name.strip_suffix("^{}"), found.refs.last_mut()) {
                (Some(tag), Some(last)) if last.0 == tag => last.1 = id,
                _ if name != "HEAD" => found.refs.push((name.to_owned(), id)),
                _ => {}
            }
        }
    }
    found
}

/// Refuses an address that git would read as an option or a helper program.
fn check_url(url: &str) -> Result<(), GitError> {
    let schemes = ["https://", "http://", "ssh://", "git://", "file://"];
    let has_scheme = schemes.iter().any(|scheme| url.starts_with(scheme));
    let clean = !url.is_empty() && !url.starts_with('-') && !url.chars().any(|c| c.is_control());
    // `host:path` and plain paths have no `://`; `helper::address` would run a program.
    if clean && (has_scheme || !(url.contains("://") || url.contains("::"))) {
        return Ok(());
    }
    let expected =
        "a repository's address, such as `https://host/team/shop.git`, `git@host:team/shop.git` or `/srv/git/shop.git`";
    Err(GitError::Invalid { text: without_credentials(url), expected })
}

/// Environment that gives git the token for this host alone, without showing it to other users of the machine.
fn credentials(url: &str, token: Option<&str>) -> Vec<(&'static str, String)> {
    let Some(token) = token else { return Vec::new() };
    let Some((scheme @ ("https" | "http"), rest)) = url.split_once("://") else { return Vec::new() };
    let host = rest.split('/').next().unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    let basic = BASE64.encode(format!("oauth2:{token}"));
    vec![
        ("GIT_CONFIG_COUNT", "1".to_owned()),
        ("GIT_CONFIG_KEY_0", format!("http.{scheme}://{host}/.extraHeader")),
        ("GIT_CONFIG_VALUE_0", format!("Authorization: Basic {basic}")),
    ]
}

async fn ask_remote(invocation: Invocation, url: &str, what: &str) -> Result<Vec<u8>, GitError> {
    let output = invocation.run().await?;
    if output.success { Ok(output.stdout) } else { Err(GitError::of_remote(url, what, &output.stderr)) }
}

impl Mirror {
    /// Created under another name and renamed, so that an unfinished one is never used as a mirror.
    async fn create(&self) -> Result<(), GitError> {
        let is_there = || tokio::fs::try_exists(self.git_dir.join("objects"));
        if is_there().await.unwrap_or(false) {
            return Ok(());
        }
        let _one_at_a_time = self.fetching.acquire().await.ok();
        if is_there().await.unwrap_or(false) {
            return Ok(());
        }
        let new = self.git_dir.with_extension("new");
        match tokio::fs::remove_dir_all(&new).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(GitError::io("remove", &new)(error)),
            _ => {}
        }
        let init = self.git.command("creating a mirror").args(["init", "--quiet", "--bare", "--template="]).args([&new]);
        init.run_ok().await?;
        // Check-outs ask for commits by id; see `checkout`.
        let allow = self.git.command("configuring a mirror").in_repository(&new);
        allow.args(["config", "uploadpack.allowAnySHA1InWant", "true"]).run_ok().await?;
        tokio::fs::rename(&new, &self.git_dir).await.map_err(GitError::io("create", &self.git_dir))
    }

    /// The address, without credentials.
    pub fn url(&self) -> String {
        without_credentials(&self.url)
    }

    fn local(&self, what: impl Into<String>) -> Invocation {
        self.git.command(what).in_repository(&self.git_dir)
    }

    /// Updates branches and tags to those of the remote. Refs that are gone there are removed; their commits stay for a while.
    ///
    /// Errors: `NoRepository`, `Unreachable`, `Denied`, `TimedOut`, `Failed`.
    pub async fn fetch(&self) -> Result<(), GitError> {
        self.fetch_refs(&["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]).await
    }

    /// Fetches one commit, even when no branch contains it any more, if the remote allows that.
    ///
    /// Errors: `RefNotFound`, and as of [`Mirror::fetch`].
    pub async fn fetch_commit(&self, commit: &CommitId) -> Result<(), GitError> {
        if self.has(commit).await? {
            return Ok(());
        }
        self.fetch().await?;
        if self.has(commit).await? {
            return Ok(());
        }
        let keep = format!("+{commit}:refs/groundswell/{commit}");
        match self.fetch_refs(&[&keep]).await {
            Ok(()) => Ok(()),
            Err(GitError::Failed { .. } | GitError::Unreachable { .. }) => Err(self.not_found(commit.as_str())),
            Err(error) => Err(error),
        }
    }

    async fn fetch_refs(&self, refspecs: &[&str]) -> Result<(), GitError> {
        // Never closed, so this cannot fail; a failure would only mean that two fetches run at once.
        let _one_at_a_time = self.fetching.acquire().await.ok();
        // What is unfinished now was left by a killed git. Check-outs only read.
        leftovers::remove_locks(&self.git_dir).await;
        leftovers::remove_half_packs(&self.git_dir).await;
        let mut fetch = self.local("fetching").args(["fetch", "--quiet", "--no-tags", "--no-write-fetch-head"]);
        if refspecs.len() > 1 {
            fetch = fetch.args(["--prune"]);
        }
        let fetch = fetch.args(["--", &self.url]).args(refspecs);
        let fetch = fetch.envs(credentials(&self.url, self.token.as_deref())).timeout(NETWORK_TIMEOUT);
        ask_remote(fetch, &self.url, "fetching").await?;
        Ok(())
    }

    fn not_found(&self, reference: &str) -> GitError {
        GitError::RefNotFound { reference: reference.to_owned(), url: self.url() }
    }

    async fn has(&self, commit: &CommitId) -> Result<bool, GitError> {
        let check = self.local("looking for a commit").args(["cat-file", "-e", &format!("{commit}^{{commit}}")]);
        Ok(check.run().await?.success)
    }

    /// When a commit was made, in seconds since 1970. Errors: `RefNotFound`.
    async fn committed_at_s(&self, commit: &CommitId) -> Result<u64, GitError> {
        let show = self.local("reading a commit").args(["log", "-1", "--no-show-signature", "--format=%ct", commit.as_str()]);
        let output = show.run().await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let committed_at_s = text.trim().parse().ok().filter(|_| output.success);
        committed_at_s.ok_or_else(|| self.not_found(commit.as_str()))
    }

    /// Paths that differ between two commits, both sides of a rename; all paths of `new` without `old`.
    ///
    /// Errors: `TooLarge` where they exceed 16 MiB; `Failed` where a commit is not here.
    pub async fn changed_paths(&self, old: Option<&CommitId>, new: &CommitId) -> Result<Vec<String>, GitError> {
        let list = self.local("listing changed paths").stdout_bytes_max(CHANGED_PATHS_BYTES_MAX);
        let list = match old {
            Some(old) => list.args(["diff-tree", "-r", "-z", "--name-only", "--no-renames", old.as_str(), new.as_str()]),
            None => list.args(["ls-tree", "-r", "-z", "--name-only", "--full-tree", new.as_str()]),
        };
        let paths = list.run_ok().await?;
        Ok(paths.split(|b| *b == 0).filter(|p| !p.is_empty()).map(|p| String::from_utf8_lossy(p).into_owned()).collect())
    }

    /// A file of a commit, at most `bytes_max` bytes; links are not followed.
    ///
    /// Errors: `PathNotFound` (also for folders, links and submodules), `TooLarge`, `Invalid`, `RefNotFound`.
    pub async fn file_at(&self, commit: &CommitId, path: &str, bytes_max: usize) -> Result<Vec<u8>, GitError> {
        let is_inside = !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !is_inside || path.contains('\0') {
            return Err(GitError::Invalid {
                text: path.to_owned(),
                expected: "a path from the repository's root, such as `services/shop/swell.toml`",
            });
        }
        let list =
            self.local("looking for a file").args(["ls-tree", "-z", "--full-tree", commit.as_str(), "--", path]).run().await?;
        if !list.success {
            return Err(self.not_found(commit.as_str()));
        }
        // `100644 blob <id>\t<path>`
        let entry = String::from_utf8_lossy(&list.stdout);
        let mut fields = entry.split_whitespace();
        let (Some("100644" | "100755"), Some("blob"), Some(id)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(GitError::PathNotFound { commit: commit.short().to_owned(), path: path.to_owned() });
        };
        let read = self.local(format!("`{path}`")).args(["cat-file", "blob", id]);
        read.stdout_bytes_max(bytes_max).run_ok().await
    }

    /// Checks `commit` out to `dest`, which must be absent or empty: a repository of its own, one commit deep, independent of the
    /// mirror. Submodules and LFS files stay pointers. After a failure `dest` is incomplete: remove it.
    ///
    /// Errors: `RefNotFound`, `Failed`, `Io`, `TimedOut`.
    pub async fn checkout(&self, commit: &CommitId, dest: &Path) -> Result<Checkout, GitError> {
        if !self.has(commit).await? {
            return Err(self.not_found(commit.as_str()));
        }
        tokio::fs::create_dir_all(dest).await.map_err(GitError::io("create", dest))?;
        let mut entries = tokio::fs::read_dir(dest).await.map_err(GitError::io("read", dest))?;
        if entries.next_entry().await.map_err(GitError::io("read", dest))?.is_some() {
            return Err(GitError::Failed {
                what: "checking out".to_owned(),
                detail: format!("`{}` is not empty", dest.display()),
            });
        }
        let at = |what: &str| self.git.command(what).args(["-C"]).args([dest]);
        at("preparing a check-out").args(["init", "--quiet", "--template="]).run_ok().await?;
        let fetch = at("copying a commit").args(["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--depth=1"]);
        fetch.args(["--"]).args([&self.git_dir]).args([commit.as_str()]).timeout(NETWORK_TIMEOUT).run_ok().await?;
        let checkout = at("checking out").args(["checkout", "--quiet", "--force", "--detach", commit.as_str()]);
        checkout.timeout(NETWORK_TIMEOUT).run_ok().await?;
        Ok(Checkout { commit: commit.clone(), committed_at_s: self.committed_at_s(commit).await? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_that_runs_a_program_is_refused() {
        for good in ["https://h/x.git", "ssh://git@h/x", "git@h:team/x.git", "/srv/x.git", "../x", "file:///x"] {
            assert!(check_url(good).is_ok(), "{good}");
        }
        for bad in ["", "-u", "--upload-pack=touch /tmp/x", "ext::sh -c id", "ftp://h/x", "a\nb", "fd::17"] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn token_is_sent_to_its_host_only() {
        let env = credentials("https://user:old@host:8443/team/x.git", Some("t0k"));
        assert_eq!(env[1].1, "http.https://host:8443/.extraHeader");
        assert_eq!(env[2].1, format!("Authorization: Basic {}", BASE64.encode("oauth2:t0k")));
        assert!(credentials("git@host:x", Some("t0k")).is_empty());
    }
}
