//! From what people call a commit to the commit: a ref of a hosted repository as state has it, or of another as git reads it there.
//! Knows nothing of who asks.

use swell_git::{GitError, Mirrors};
use swell_model::{
    ids::RepositoryName,
    interfaces::ProposeError,
    pipeline::Source,
    repository::{CommitId, Ref, Repository},
    tables::{ReadTables as _, TablesError, key},
};
use swell_raft::Node;

/// A commit, and the ref that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundCommit {
    /// The commit that the ref points at.
    pub commit: CommitId,
    /// The ref's full name. `HEAD` where only the commit was named: no branch is blamed for it, so none deploys it by itself.
    pub git_ref: String,
}

/// Why a name leads to no commit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The pipeline's hosted repository does not exist.
    #[error("there is no repository {0}: create it with `swell repo create {0}`")]
    NoRepository(RepositoryName),
    /// No branch, tag or commit has that name.
    #[error("there is no `{wanted}` in {place}: push it first, or name another branch, tag or commit")]
    NoRef {
        /// The name that was asked for.
        wanted: String,
        /// The repository, for a reader.
        place: String,
    },
    /// This server was started without mirrors of remote repositories.
    #[error("this server reads no remote repositories: name the commit")]
    NoMirrors,
    /// The remote repository could not be read.
    #[error(transparent)]
    Remote(#[from] GitError),
    /// This server cannot show the newest state.
    #[error(transparent)]
    State(#[from] ProposeError),
    /// State could not be read.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// The remote repository named something that is no commit id, or the reading thread ended.
    #[error("failed to resolve a ref: {0}")]
    Internal(String),
}

impl ResolveError {
    /// Whether the same may work later without anybody changing anything.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Remote(error) if error.retryable())
    }
}

/// Resolves refs of hosted and remote repositories to commits.
#[derive(Clone)]
pub struct Commits {
    node: Node,
    mirrors: Option<Mirrors>,
}

impl Commits {
    /// Without `mirrors`, refs of remote repositories cannot be resolved.
    pub fn new(node: Node, mirrors: Option<Mirrors>) -> Self {
        Self { node, mirrors }
    }

    /// The commit that `wanted` (a ref's full or short name; none: the default branch) names in `source` now.
    ///
    /// # Errors
    /// [`ResolveError`], when there is no such ref or the repository cannot be read.
    pub async fn resolve(&self, source: &Source, wanted: Option<String>) -> Result<FoundCommit, ResolveError> {
        match source {
            Source::Hosted(repository) => self.resolve_hosted(repository.clone(), wanted).await,
            Source::Remote(url) => self.resolve_remote(url, wanted).await,
        }
    }

    async fn resolve_hosted(&self, name: RepositoryName, wanted: Option<String>) -> Result<FoundCommit, ResolveError> {
        let view = self.node.linearizable_view().await?;
        let read = tokio::task::spawn_blocking(move || {
            let Some(repository) = view.get::<Repository>(&key(name.as_str()))? else {
                return Err(ResolveError::NoRepository(name));
            };
            let wanted = wanted.unwrap_or_else(|| format!("refs/heads/{}", repository.default_branch));
            for candidate in candidates(&wanted) {
                let found: Option<Ref> = view.get(&key(name.as_str()).then(candidate.as_str()))?;
                if let Some(found) = found {
                    return Ok(FoundCommit { commit: found.commit, git_ref: found.name });
                }
            }
            Err(ResolveError::NoRef { wanted, place: format!("repository {name}") })
        });
        read.await.map_err(|error| ResolveError::Internal(error.to_string()))?
    }

    async fn resolve_remote(&self, url: &str, wanted: Option<String>) -> Result<FoundCommit, ResolveError> {
        let mirrors = self.mirrors.as_ref().ok_or(ResolveError::NoMirrors)?;
        let listed = mirrors.ls_remote(url, None).await?;
        let no_ref = |wanted: &str| ResolveError::NoRef { wanted: wanted.to_owned(), place: "the repository".to_owned() };
        let wanted = wanted.or(listed.head).ok_or_else(|| no_ref("HEAD"))?;
        for candidate in candidates(&wanted) {
            if let Some((name, id)) = listed.refs.iter().find(|(name, _)| *name == candidate) {
                let commit = id.as_str().parse().map_err(|error| ResolveError::Internal(format!("{error}")))?;
                return Ok(FoundCommit { commit, git_ref: name.clone() });
            }
        }
        Err(no_ref(&wanted))
    }
}

/// The full names that a short one may mean, in git's order.
fn candidates(name: &str) -> Vec<String> {
    if name.starts_with("refs/") {
        return vec![name.to_owned()];
    }
    vec![format!("refs/tags/{name}"), format!("refs/heads/{name}")]
}
