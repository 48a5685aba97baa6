//! How artifacts and releases look from outside.

use serde::Serialize;
use utoipa::ToSchema;

use swell_model::{
    pipeline_file::PipelineFile,
    release::{Artifact, Release},
};

/// An artifact.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ArtifactView {
    /// SHA-256 of the compressed archive.
    pub digest: String,
    /// The size of the compressed archive.
    pub size_bytes: u64,
    /// The size of what is unpacked.
    pub unpacked_bytes: u64,
    /// The manifest's content.
    pub manifest: String,
    /// Whose.
    pub pipeline: String,
    /// From which commit.
    pub commit: String,
    /// When it was first stored.
    pub created_at: u64,
    /// When its bytes were deleted.
    pub deleted_at: Option<u64>,
}

impl From<Artifact> for ArtifactView {
    fn from(artifact: Artifact) -> Self {
        Self {
            digest: artifact.digest.to_string(),
            size_bytes: artifact.size.0,
            unpacked_bytes: artifact.unpacked_size.0,
            manifest: artifact.manifest.to_string(),
            pipeline: artifact.pipeline.to_string(),
            commit: artifact.commit.to_string(),
            created_at: artifact.created_at.0,
            deleted_at: artifact.deleted_at.map(|at| at.0),
        }
    }
}

/// A release.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReleaseView {
    /// Its id, such as `shop@12`.
    pub id: String,
    /// Whose.
    pub pipeline: String,
    /// Its number within the pipeline.
    pub number: u64,
    /// What is unpacked on the targets.
    pub artifact: String,
    /// The build that made it.
    pub build: String,
    /// From which commit.
    pub commit: String,
    /// The ref that led to it.
    pub git_ref: String,
    /// Who asked for the build.
    pub by: String,
    /// When it was made.
    pub created_at: u64,
    /// The pipeline file, in the shape of `swell.toml`; left out in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub file: Option<PipelineFile>,
}

impl ReleaseView {
    /// Without the pipeline file.
    pub fn brief(release: &Release) -> Self {
        Self {
            id: release.id.to_string(),
            pipeline: release.id.pipeline.to_string(),
            number: release.id.number,
            artifact: release.artifact.to_string(),
            build: release.build.to_string(),
            commit: release.commit.to_string(),
            git_ref: release.git_ref.clone(),
            by: release.by.to_string(),
            created_at: release.created_at.0,
            file: None,
        }
    }

    /// With everything.
    pub fn full(release: Release) -> Self {
        Self { file: Some(release.file.clone()), ..Self::brief(&release) }
    }
}
