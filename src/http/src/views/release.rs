//! The API's views of artifacts and releases.

use serde::Serialize;
use utoipa::ToSchema;

use swell_model::{
    pipeline_file::PipelineFile,
    release::{Artifact, Release},
};

/// Output of a build.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ArtifactView {
    /// SHA-256 of the compressed archive.
    pub digest: String,
    /// Size of the compressed archive.
    pub size_bytes: u64,
    /// Size of the unpacked files.
    pub unpacked_bytes: u64,
    /// Digest of the manifest.
    pub manifest: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Commit that it was built from.
    pub commit: String,
    /// Time at which it was first stored.
    pub created_at: u64,
    /// Time at which its content was deleted.
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

/// Version of a pipeline that can be deployed.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReleaseView {
    /// Id, such as `shop@12`.
    pub id: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Number within the pipeline.
    pub number: u64,
    /// Digest of the artifact.
    pub artifact: String,
    /// Id of the build that made it.
    pub build: String,
    /// Commit that it was built from.
    pub commit: String,
    /// Ref that the commit was requested by.
    pub git_ref: String,
    /// Principal that requested the build.
    pub by: String,
    /// Time of its creation.
    pub created_at: u64,
    /// Pipeline file, in the form of `swell.toml`; omitted in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub file: Option<PipelineFile>,
}

impl ReleaseView {
    /// The release without its pipeline file.
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

    /// The release with its pipeline file.
    pub fn full(release: Release) -> Self {
        Self { file: Some(release.file.clone()), ..Self::brief(&release) }
    }
}
