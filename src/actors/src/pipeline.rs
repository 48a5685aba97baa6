//! One pipeline: looks at pushes that nobody has looked at, and lets artifacts go that its retention no longer keeps.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    drive::{After, Drive, DriveError},
    leader::Leading,
};
use swell_git::GitError;
use swell_model::{
    build::{Cause, Resources},
    cluster::Cluster,
    command::{ArtifactAction, BuildAction, PipelineAction},
    ids::{PipelineName, RepositoryName},
    pipeline::{
        ConsideredRef, Pipeline, Source,
        push::{Concern, LOOKS_MAX, Moved, concern, moved},
    },
    pipeline_file::FILE_BYTES_MAX,
    release::retention::expired_artifacts,
    repository::{CommitId, Ref},
    tables::{Key, ReadTables, SCAN_RECORDS_MAX, Scan, key},
};

/// How often retention is looked at.
const RETENTION_EVERY: Duration = Duration::from_secs(600);

/// How many artifacts go at once.
const EXPIRED_AT_ONCE: usize = 50;

/// How long after a push could not be looked at it is looked at again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Drives one pipeline.
pub(super) struct PipelineDrive {
    name: PipelineName,
    retention_at: Option<Instant>,
    tries: BTreeMap<(String, CommitId), u32>,
}

impl PipelineDrive {
    pub fn new(name: PipelineName) -> Self {
        Self { name, retention_at: None, tries: BTreeMap::new() }
    }

    /// Looks at one push. False: it could not be looked at, and is to be looked at again.
    async fn look_at_push(
        &mut self,
        leading: &Leading,
        pipeline: &Pipeline,
        repository: &RepositoryName,
        moved: Moved,
    ) -> Result<bool, DriveError> {
        let name = pipeline.name.clone();
        let Moved { git_ref, old, new } = moved;
        let Some((commit, pusher)) = new else {
            let why = "the ref was deleted".to_owned();
            leading.propose(Self::NAME, PipelineAction::Considered { name, git_ref, commit: None, why }).await?;
            return Ok(true);
        };
        let concern = match look_at(leading, pipeline, repository, old.as_ref(), &commit).await {
            Ok(concern) => concern,
            Err(error) => {
                let tries = self.tries.entry((git_ref.clone(), commit.clone())).or_default();
                *tries += 1;
                if *tries < LOOKS_MAX {
                    tracing::warn!(pipeline = %name, %commit, %error, "a push cannot be looked at yet");
                    return Ok(false);
                }
                tracing::warn!(pipeline = %name, %commit, %error, "a push cannot be looked at, so it is built");
                Concern::Builds(Resources::default())
            }
        };
        self.tries.remove(&(git_ref.clone(), commit.clone()));
        match concern {
            Concern::Builds(resources) => {
                let request =
                    BuildAction::Request { pipeline: name, commit, git_ref, cause: Cause::Push, again: false, resources };
                leading.propose_for(pusher, Self::NAME, request).await?;
            }
            Concern::Skips(why) => {
                leading.propose(Self::NAME, PipelineAction::Considered { name, git_ref, commit: Some(commit), why }).await?;
            }
        }
        Ok(true)
    }

    async fn let_artifacts_go(&mut self, leading: &Leading) -> Result<(), DriveError> {
        if self.retention_at.is_some_and(|at| at.elapsed() < RETENTION_EVERY) {
            return Ok(());
        }
        self.retention_at = Some(Instant::now());
        let view = leading.node.view();
        let now = view.get::<Cluster>(&Key::all())?.unwrap_or_default().clock;
        let digests = expired_artifacts(&view, now, EXPIRED_AT_ONCE)?;
        drop(view);
        if !digests.is_empty() {
            leading.propose(Self::NAME, ArtifactAction::Delete { digests: digests.clone() }).await?;
        }
        for digest in digests {
            if let Err(error) = leading.content.delete(digest).await {
                tracing::warn!(%digest, %error, "an artifact's bytes stay until the store is swept");
            }
        }
        Ok(())
    }
}

impl Drive for PipelineDrive {
    const NAME: &'static str = "pipeline";

    async fn look(&mut self, leading: &Leading) -> Result<After, DriveError> {
        let view = leading.node.view();
        let Some(pipeline) = view.get::<Pipeline>(&key(self.name.as_str()))? else { return Ok(After::Done) };
        let mut looked_at_all = true;
        if let Source::Hosted(repository) = &pipeline.source {
            let refs: Vec<Ref> = view.scan(&Scan::prefix(key(repository.as_str())), SCAN_RECORDS_MAX)?;
            let considered: Vec<ConsideredRef> = view.scan(&Scan::prefix(key(self.name.as_str())), SCAN_RECORDS_MAX)?;
            drop(view);
            for moved in moved(&considered, &refs) {
                looked_at_all &= self.look_at_push(leading, &pipeline, repository, moved).await?;
            }
        }
        self.let_artifacts_go(leading).await?;
        Ok(After::Look(if looked_at_all { RETENTION_EVERY } else { LOOK_AGAIN_AFTER }))
    }
}

/// Reads at the pushed commit what the rules need to tell whether it concerns the pipeline.
async fn look_at(
    leading: &Leading,
    pipeline: &Pipeline,
    repository: &RepositoryName,
    old: Option<&CommitId>,
    new: &CommitId,
) -> Result<Concern, GitError> {
    let path = leading.repositories.catch_up(repository).await?;
    let mirror = leading.mirrors.of(&path.to_string_lossy(), None).await?;
    mirror.fetch().await?;
    let file = match mirror.file_at(new, &pipeline.file, FILE_BYTES_MAX).await {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(GitError::PathNotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    let changed = mirror.changed_paths(old, new).await.ok();
    Ok(concern(pipeline, new, file.as_deref(), changed.as_deref()))
}
