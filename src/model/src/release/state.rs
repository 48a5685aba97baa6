//! What is deployed: artifacts, and the immutable releases that name them.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::change::Change;
use crate::{
    digest::Digest,
    ids::{BuildId, PipelineName, ReleaseId},
    pipeline_file::PipelineFile,
    principal::Principal,
    repository::CommitId,
    tables::{Key, Record, Table, key},
    units::{ByteSize, Timestamp},
};

/// An archive in the content store, with what the rules need to know of it. The manifest beside it says the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// SHA-256 of the compressed archive.
    pub digest: Digest,
    /// The size of the compressed archive.
    pub size: ByteSize,
    /// The size of what is unpacked.
    pub unpacked_size: ByteSize,
    /// The manifest's content.
    pub manifest: Digest,
    pub pipeline: PipelineName,
    pub commit: CommitId,
    /// When it was first stored.
    pub created_at: Timestamp,
    /// Until when the retention of the pipelines that built it keeps its bytes, the longest of them.
    pub expires_at: Timestamp,
    /// When its bytes were deleted; the record stays, so that history can be read.
    pub deleted_at: Option<Timestamp>,
}

impl Record for Artifact {
    const TABLE: Table = Table::Artifacts;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        key(self.digest.hex().as_str())
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Artifact(record))
    }
}

/// Artifact, configuration, run and health settings under one number. Never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub id: ReleaseId,
    /// What is unpacked on the targets.
    pub artifact: Digest,
    /// The artifact's manifest when the release was made.
    pub manifest: Digest,
    /// The build that made it.
    pub build: BuildId,
    pub commit: CommitId,
    /// The ref that led to it.
    pub git_ref: String,
    /// The pipeline file of that commit: what runs, how it is judged and how it is rolled out.
    pub file: PipelineFile,
    /// Who asked for the build.
    pub by: Principal,
    pub created_at: Timestamp,
}

impl Record for Release {
    const TABLE: Table = Table::Releases;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        release_key(&self.id)
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Release(record))
    }
}

/// The key of a release.
pub fn release_key(id: &ReleaseId) -> Key {
    key(id.pipeline.as_str()).then(id.number)
}
