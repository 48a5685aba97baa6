//! A pipeline: a registered repository, what concerns it, and how its builds are treated.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::{change::Change, release::Uses};
use crate::{
    ids::{PipelineName, ReleaseId, RepositoryName},
    repository::CommitId,
    tables::{Key, Record, Table, key},
    units::{Millis, Timestamp},
};

/// Where a pipeline's commits come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A repository that Groundswell hosts.
    Hosted(RepositoryName),
    /// Any repository that git can reach by this address.
    Remote(String),
}

/// How many builds of one pipeline may run at once, at the most.
pub const CONCURRENCY_MAX: u32 = 64;

/// The most releases whose artifacts a pipeline's retention keeps.
pub const RETAINED_RELEASES_MAX: u32 = 1000;

/// What a pipeline keeps. An artifact that any environment runs or could roll back to is kept whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// So many of the newest releases keep their artifacts; at most [`RETAINED_RELEASES_MAX`].
    pub releases: u32,
    /// Artifacts younger than this are kept.
    pub age: Millis,
    /// How long builds, rollouts and releases stay in state after their end, before they leave it for the archive.
    #[serde(default = "history_default")]
    pub history: Millis,
}

fn history_default() -> Millis {
    Retention::default().history
}

impl Default for Retention {
    fn default() -> Self {
        Self { releases: 10, age: Millis(30 * 86_400_000), history: Millis(30 * 86_400_000) }
    }
}

/// A registered pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipeline {
    pub name: PipelineName,
    /// Where its commits come from.
    pub source: Source,
    /// The path of its pipeline file within the repository.
    pub file: String,
    /// How many of its builds may run at once.
    pub concurrency: u32,
    /// Whether a newer push takes the place of a queued build of the same ref.
    pub supersede: bool,
    /// What it keeps.
    pub retention: Retention,
    /// The number of the next release.
    pub next_release: u64,
    pub created_at: Timestamp,
    /// The log index of its last change: its ETag.
    pub revision: u64,
}

impl Record for Pipeline {
    const TABLE: Table = Table::Pipelines;
    const IS_FOLLOWED: bool = true;
    const HAS_USES: bool = true;

    fn key(&self) -> Key {
        key(self.name.as_str())
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Pipeline(record))
    }

    /// The newest releases, as many as its retention keeps.
    fn uses(&self) -> Uses {
        let oldest = self.next_release.saturating_sub(self.retention.releases.into()).max(1);
        let of_number = |number| ReleaseId { pipeline: self.name.clone(), number };
        Uses { needed: (oldest..self.next_release).map(of_number).collect(), ..Uses::default() }
    }
}

/// The newest commit of one ref that was considered for a pipeline, so that a new leader knows which pushes are still to be considered.
/// As many as its repository has refs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsideredRef {
    pub pipeline: PipelineName,
    /// The ref's full name.
    pub git_ref: String,
    /// Where it stood.
    pub commit: CommitId,
}

impl Record for ConsideredRef {
    const TABLE: Table = Table::ConsideredRefs;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        considered_key(&self.pipeline, &self.git_ref)
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::ConsideredRef(record))
    }
}

/// The key of what was considered of a ref.
pub fn considered_key(pipeline: &PipelineName, git_ref: &str) -> Key {
    key(pipeline.as_str()).then(git_ref)
}
