//! The API's views of pipelines and hosted repositories.

use serde::Serialize;
use utoipa::ToSchema;

use swell_model::{
    pipeline::{Pipeline, Source},
    repository::{Ref, Repository},
};

/// Repository that a pipeline's commits come from.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceView {
    /// Name of a hosted repository.
    Hosted(String),
    /// Address of any other git repository.
    Remote(String),
}

/// Repository that is built and deployed.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PipelineView {
    /// Name of the pipeline.
    pub name: String,
    /// Repository that its commits come from.
    pub source: SourceView,
    /// Path of the pipeline file in the repository.
    pub file: String,
    /// Number of its builds that may run at once.
    pub concurrency: u32,
    /// Whether a newer push replaces a queued build of the same ref.
    pub supersede: bool,
    /// Number of newest releases whose artifacts are kept.
    pub retention_releases: u32,
    /// Age up to which artifacts are kept.
    pub retention_age_ms: u64,
    /// How long builds, rollouts and releases stay in state after their end.
    pub retention_history_ms: u64,
    /// Id of the newest release.
    pub newest_release: Option<String>,
    /// Time of its creation.
    pub created_at: u64,
    /// Revision, also sent as `ETag`.
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

/// Ref of a hosted repository.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RefView {
    /// Full name, such as `refs/heads/main`.
    pub name: String,
    /// Commit that it points to.
    pub commit: String,
    /// Time of its last change.
    pub moved_at: u64,
    /// Principal that changed it last.
    pub moved_by: String,
}

/// Hosted git repository.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RepositoryView {
    /// Name of the repository.
    pub name: String,
    /// Path on this server that git pushes to and fetches from.
    pub path: String,
    /// Name of the branch that a clone checks out.
    pub default_branch: String,
    /// Time of its creation.
    pub created_at: u64,
    /// Refs, at most 1,000; empty in lists.
    pub refs: Vec<RefView>,
}

impl RepositoryView {
    /// The repository with these refs.
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
