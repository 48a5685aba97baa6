//! One pipeline: decides whether new pushes concern it, and deletes artifacts that its retention no longer keeps.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    leader_context::LeaderContext,
    reconciler::{ReconcileError, Reconciler, Requeue},
};
use swell_git::GitError;
use swell_model::{
    build::Cause,
    cluster::Cluster,
    command::{ArtifactAction, BuildAction, PipelineAction},
    ids::{PipelineName, RepositoryName},
    pipeline::{
        ConsideredRef, Pipeline, Source,
        push::{Concern, Moved, concern, moved, unreadable},
    },
    pipeline_file::FILE_BYTES_MAX,
    release::retention::expired_artifacts,
    repository::{CommitId, Ref},
    tables::{Key, ReadTables, SCAN_RECORDS_MAX, Scan, key},
};

/// How often retention is applied.
const RETENTION_EVERY: Duration = Duration::from_secs(600);

/// Artifacts deleted by one command.
const EXPIRED_AT_ONCE: usize = 50;

/// Between a push that could not be read and the next try.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Reconciles one pipeline.
pub(super) struct PipelineReconciler {
    name: PipelineName,
    retention_at: Option<Instant>,
    /// How often each push could not be read, in a row.
    failures: BTreeMap<(String, CommitId), u32>,
}

impl PipelineReconciler {
    pub fn new(name: PipelineName) -> Self {
        Self { name, retention_at: None, failures: BTreeMap::new() }
    }

    /// Considers one push. False: it could not be read, and is to be considered again.
    async fn consider(
        &mut self,
        context: &LeaderContext,
        pipeline: &Pipeline,
        repository: &RepositoryName,
        moved: Moved,
    ) -> Result<bool, ReconcileError> {
        let name = pipeline.name.clone();
        let Moved { git_ref, old, new } = moved;
        let Some((commit, pusher)) = new else {
            let why = "the ref was deleted".to_owned();
            context.propose(Self::NAME, PipelineAction::Considered { name, git_ref, commit: None, why }).await?;
            return Ok(true);
        };
        let concern = match read_push(context, pipeline, repository, old.as_ref(), &commit).await {
            Ok(concern) => concern,
            Err(error) => {
                let failures = self.failures.entry((git_ref.clone(), commit.clone())).or_default();
                *failures += 1;
                tracing::warn!(pipeline = %name, %commit, %error, failures, "failed to read a pushed commit");
                let Some(concern) = unreadable(*failures) else { return Ok(false) };
                concern
            }
        };
        self.failures.remove(&(git_ref.clone(), commit.clone()));
        match concern {
            Concern::Builds(resources) => {
                let request =
                    BuildAction::Request { pipeline: name, commit, git_ref, cause: Cause::Push, again: false, resources };
                context.propose_for(pusher, Self::NAME, request).await?;
            }
            Concern::Skips(why) => {
                context.propose(Self::NAME, PipelineAction::Considered { name, git_ref, commit: Some(commit), why }).await?;
            }
        }
        Ok(true)
    }

    async fn delete_expired(&mut self, context: &LeaderContext) -> Result<(), ReconcileError> {
        if self.retention_at.is_some_and(|at| at.elapsed() < RETENTION_EVERY) {
            return Ok(());
        }
        self.retention_at = Some(Instant::now());
        let view = context.node.view();
        let now = view.get::<Cluster>(&Key::all())?.unwrap_or_default().clock.now;
        let digests = expired_artifacts(&view, now, EXPIRED_AT_ONCE)?;
        drop(view);
        if !digests.is_empty() {
            context.propose(Self::NAME, ArtifactAction::Delete { digests: digests.clone() }).await?;
        }
        for digest in digests {
            if let Err(error) = context.content.delete(digest).await {
                tracing::warn!(%digest, %error, "failed to delete an artifact, leaving it to the sweep");
            }
        }
        Ok(())
    }
}

impl Reconciler for PipelineReconciler {
    const NAME: &'static str = "pipeline";

    async fn reconcile(&mut self, context: &LeaderContext) -> Result<Requeue, ReconcileError> {
        let view = context.node.view();
        let Some(pipeline) = view.get::<Pipeline>(&key(self.name.as_str()))? else { return Ok(Requeue::Done) };
        let mut considered_all = true;
        if let Source::Hosted(repository) = &pipeline.source {
            let refs: Vec<Ref> = view.scan(&Scan::prefix(key(repository.as_str())), SCAN_RECORDS_MAX)?;
            let considered: Vec<ConsideredRef> = view.scan(&Scan::prefix(key(self.name.as_str())), SCAN_RECORDS_MAX)?;
            drop(view);
            for moved in moved(&considered, &refs) {
                considered_all &= self.consider(context, &pipeline, repository, moved).await?;
            }
        }
        self.delete_expired(context).await?;
        Ok(Requeue::After(if considered_all { RETENTION_EVERY } else { RETRY_AFTER }))
    }
}

/// Reads at the pushed commit what the rules need to tell whether it concerns the pipeline.
async fn read_push(
    context: &LeaderContext,
    pipeline: &Pipeline,
    repository: &RepositoryName,
    old: Option<&CommitId>,
    new: &CommitId,
) -> Result<Concern, GitError> {
    let path = context.repositories.catch_up(repository).await?;
    let mirror = context.mirrors.of(&path.to_string_lossy(), None).await?;
    mirror.fetch().await?;
    let file = match mirror.file_at(new, &pipeline.file, FILE_BYTES_MAX).await {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(GitError::PathNotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    let changed = mirror.changed_paths(old, new).await.ok();
    Ok(concern(pipeline, new, file.as_deref(), changed.as_deref()))
}
