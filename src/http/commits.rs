//! From what people call a commit to the commit: a ref of a hosted repository as state has it, or of another as git is told.

use hyper::StatusCode;

use super::{
    app::{App, existing},
    problem::Problem,
};
use crate::model::{
    event::Subject,
    ids::RepositoryName,
    pipeline::Source,
    repository::{CommitId, Ref, Repository},
    tables::{ReadTables, key},
};

/// A commit, and the ref that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which.
    pub commit: CommitId,
    /// The ref's full name. `HEAD` where only the commit was named: no branch is blamed for it, so none deploys it by itself.
    pub git_ref: String,
}

/// The commit that `wanted` (a ref's full or short name; none: the default branch) names in `source` now.
pub async fn resolve(app: &App, source: &Source, wanted: Option<String>) -> Result<Found, Problem> {
    match source {
        Source::Hosted(repository) => hosted(app, repository.clone(), wanted).await,
        Source::Remote(url) => remote(app, url, wanted).await,
    }
}

/// The full names that a short one may mean, in git's order.
fn candidates(name: &str) -> Vec<String> {
    if name.starts_with("refs/") {
        return vec![name.to_owned()];
    }
    vec![format!("refs/tags/{name}"), format!("refs/heads/{name}")]
}

async fn hosted(app: &App, name: RepositoryName, wanted: Option<String>) -> Result<Found, Problem> {
    app.read_latest(move |view| {
        let repository: Repository = existing(view, &key(name.as_str()), || Subject::Repository(name.clone()))?;
        let wanted = wanted.unwrap_or_else(|| format!("refs/heads/{}", repository.default_branch));
        for candidate in candidates(&wanted) {
            let found: Option<Ref> = view.get(&key(name.as_str()).then(candidate.as_str()))?;
            if let Some(found) = found {
                return Ok(Found { commit: found.commit, git_ref: found.name });
            }
        }
        Err(no_ref(&wanted, &format!("repository {name}")))
    })
    .await
}

async fn remote(app: &App, url: &str, wanted: Option<String>) -> Result<Found, Problem> {
    let Some(mirrors) = &app.mirrors else {
        return Err(Problem::invalid("this server does not ask other repositories for their refs", "name the commit"));
    };
    let listed = mirrors.ls_remote(url, None).await.map_err(|error| {
        let hint = "look at the repository's address";
        Problem::new(StatusCode::BAD_GATEWAY, "repository_unreachable", error.to_string(), hint).retryable_if(error.retryable())
    })?;
    let wanted = match wanted.or(listed.head) {
        Some(wanted) => wanted,
        None => return Err(no_ref("HEAD", "the repository")),
    };
    for candidate in candidates(&wanted) {
        if let Some((name, id)) = listed.refs.iter().find(|(name, _)| *name == candidate) {
            let commit = id.as_str().parse().map_err(Problem::internal)?;
            return Ok(Found { commit, git_ref: name.clone() });
        }
    }
    Err(no_ref(&wanted, "the repository"))
}

fn no_ref(wanted: &str, place: &str) -> Problem {
    let hint = "push it first, or name another branch, tag or commit";
    Problem::new(StatusCode::NOT_FOUND, "no_ref", format!("there is no `{wanted}` in {place}"), hint)
}
