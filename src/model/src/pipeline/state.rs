//! A pipeline: a registered repository, what concerns it, and how its builds are treated.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::change::Change;
use crate::{
    ids::{PipelineName, RepositoryName},
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

/// What a pipeline keeps. An artifact that any environment runs or could roll back to is kept whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// So many of the newest releases keep their artifacts.
    pub releases: u32,
    /// Artifacts younger than this are kept.
    pub age: Millis,
}

impl Default for Retention {
    fn default() -> Self {
        Self { releases: 10, age: Millis(30 * 86_400_000) }
    }
}

/// A registered pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipeline {
    /// Its name.
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
    /// When it was created.
    pub created_at: Timestamp,
    /// The log index of its last change: its ETag.
    pub revision: u64,
}

impl Record for Pipeline {
    const TABLE: Table = Table::Pipelines;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        key(self.name.as_str())
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Pipeline(record))
    }
}

/// The newest commit of one ref that was considered for a pipeline, so that a new leader knows which pushes are still to be looked at.
/// As many as its repository has refs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsideredRef {
    /// Whose.
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
