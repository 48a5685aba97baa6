//! How pipelines and hosted repositories look from outside.

use serde::Serialize;
use utoipa::ToSchema;

use swell_model::{
    pipeline::{Pipeline, Source},
    repository::{Ref, Repository},
};

/// Where a pipeline's commits come from.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceView {
    /// A repository that Groundswell hosts, by its name.
    Hosted(String),
    /// Any repository that git can reach by this address.
    Remote(String),
}

/// A registered pipeline.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PipelineView {
    /// Its name.
    pub name: String,
    /// Where its commits come from.
    pub source: SourceView,
    /// The path of its pipeline file within the repository.
    pub file: String,
    /// How many of its builds may run at once.
    pub concurrency: u32,
    /// Whether a newer push takes the place of a queued build of the same ref.
    pub supersede: bool,
    /// So many of the newest releases keep their artifacts.
    pub retention_releases: u32,
    /// Artifacts younger than this are kept.
    pub retention_age_ms: u64,
    /// How long builds, rollouts and releases stay in state after their end.
    pub retention_history_ms: u64,
    /// Its newest release.
    pub newest_release: Option<String>,
    /// When it was created.
    pub created_at: u64,
    /// Its revision: the `ETag`.
    pub revision: u64,
}

impl From<Pipeline> for PipelineView {
    fn from(pipeline: Pipeline) -> Self {
        let newest = pipeline.next_release.checked_sub(1).filter(|number| *number > 0);
        Self {
            newest_release: newest.map(|number| format!("{}@{number}", pipeline.name)),
            name: pipeline.name.to_string(),
            source: match pipeline.source {
                Source::Hosted(name) => SourceView::Hosted(name.to_string()),
                Source::Remote(url) => SourceView::Remote(url),
            },
            file: pipeline.file,
            concurrency: pipeline.concurrency,
            supersede: pipeline.supersede,
            retention_releases: pipeline.retention.releases,
            retention_age_ms: pipeline.retention.age.0,
            retention_history_ms: pipeline.retention.history.0,
            created_at: pipeline.created_at.0,
            revision: pipeline.revision,
        }
    }
}

/// A ref of a hosted repository.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RefView {
    /// Its full name.
    pub name: String,
    /// What it points at.
    pub commit: String,
    /// When it was last moved.
    pub moved_at: u64,
    /// Who moved it.
    pub moved_by: String,
}

/// A repository that Groundswell hosts.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RepositoryView {
    /// Its name.
    pub name: String,
    /// The path under this server that git pushes to and fetches from.
    pub path: String,
    /// The branch that `HEAD` names.
    pub default_branch: String,
    /// When it was created.
    pub created_at: u64,
    /// Its refs, at most 1,000; empty in lists.
    pub refs: Vec<RefView>,
}

impl RepositoryView {
    /// With its refs.
    pub fn new(repository: Repository, refs: Vec<Ref>) -> Self {
        let refs = refs
            .into_iter()
            .map(|r| RefView {
                name: r.name,
                commit: r.commit.to_string(),
                moved_at: r.moved_at.0,
                moved_by: r.moved_by.to_string(),
            })
            .collect();
        Self {
            path: format!("/git/{}", repository.name),
            name: repository.name.to_string(),
            default_branch: repository.default_branch,
            created_at: repository.created_at.0,
            refs,
        }
    }
}
