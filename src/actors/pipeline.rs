//! One pipeline: looks at pushes that nobody has looked at, and lets artifacts go that its retention no longer keeps.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    drive::{After, Drive, DriveError},
    leader::Leading,
};
use crate::{
    artifacts::git::GitError,
    model::{
        build::{Cause, Resources},
        cluster::Cluster,
        command::{ArtifactAction, BuildAction, PipelineAction},
        ids::{PipelineName, RepositoryName},
        pipeline::{Pipeline, Source},
        pipeline_file::{FILE_BYTES_MAX, PipelineFile},
        repository::{CommitId, Ref},
        retention::expired_artifacts,
        tables::{Key, ReadTables, SCAN_RECORDS_MAX, Scan, key},
    },
};

/// How often retention is looked at.
const RETENTION_EVERY: Duration = Duration::from_secs(600);

/// How many artifacts go at once.
const EXPIRED_AT_ONCE: usize = 50;

/// How many times a push that cannot be looked at is tried before it is built without looking: a filter that cannot be evaluated builds.
const TRIES_MAX: u32 = 3;

/// Drives one pipeline.
pub(super) struct PipelineDrive {
    name: PipelineName,
    retention_at: Option<Instant>,
    tries: BTreeMap<(String, CommitId), u32>,
}

/// A ref of a hosted repository that moved since it was last looked at.
struct Moved {
    git_ref: String,
    old: Option<CommitId>,
    new: Option<CommitId>,
}

/// Whether a push concerns a pipeline.
enum Concern {
    Builds(Resources),
    Skips(String),
}

impl PipelineDrive {
    pub fn new(name: PipelineName) -> Self {
        Self { name, retention_at: None, tries: BTreeMap::new() }
    }

    async fn look_at_push(
        &mut self,
        leading: &Leading,
        pipeline: &Pipeline,
        repository: &RepositoryName,
        moved: Moved,
    ) -> Result<(), DriveError> {
        let name = pipeline.name.clone();
        let Moved { git_ref, old, new } = moved;
        let Some(commit) = new else {
            let why = "the ref was deleted".to_owned();
            leading.propose("pipeline", PipelineAction::Considered { name, git_ref, commit: None, why }).await?;
            return Ok(());
        };
        let concern = match concern(leading, pipeline, repository, old.as_ref(), &commit).await {
            Ok(concern) => concern,
            Err(error) => {
                let tries = self.tries.entry((git_ref.clone(), commit.clone())).or_default();
                *tries += 1;
                if *tries < TRIES_MAX {
                    return Err(DriveError::Other(format!("cannot look at {commit} of {repository}: {error}")));
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
                leading.propose("pipeline", request).await?;
            }
            Concern::Skips(why) => {
                leading.propose("pipeline", PipelineAction::Considered { name, git_ref, commit: Some(commit), why }).await?;
            }
        }
        Ok(())
    }

    async fn let_artifacts_go(&mut self, leading: &Leading, pipeline: &Pipeline) -> Result<(), DriveError> {
        if self.retention_at.is_some_and(|at| at.elapsed() < RETENTION_EVERY) {
            return Ok(());
        }
        self.retention_at = Some(Instant::now());
        let view = leading.node.view();
        let now = view.get::<Cluster>(&Key::all())?.unwrap_or_default().clock;
        let digests = expired_artifacts(&view, pipeline, now, EXPIRED_AT_ONCE)?;
        drop(view);
        if digests.is_empty() {
            return Ok(());
        }
        leading.propose("pipeline", ArtifactAction::Delete { digests: digests.clone() }).await?;
        for digest in digests {
            if let Err(error) = leading.content.delete(digest).await {
                tracing::warn!(%digest, %error, "an artifact's bytes stay until the next cleaning");
            }
        }
        Ok(())
    }
}

impl Drive for PipelineDrive {
    async fn look(&mut self, leading: &Leading) -> Result<After, DriveError> {
        let view = leading.node.view();
        let Some(pipeline) = view.get::<Pipeline>(&key(self.name.as_str()))? else { return Ok(After::Done) };
        if let Source::Hosted(repository) = &pipeline.source {
            let refs: Vec<Ref> = view.scan(&Scan::prefix(key(repository.as_str())), SCAN_RECORDS_MAX)?;
            drop(view);
            for moved in moved(&pipeline, &refs) {
                self.look_at_push(leading, &pipeline, repository, moved).await?;
            }
        }
        self.let_artifacts_go(leading, &pipeline).await?;
        Ok(After::Look(RETENTION_EVERY))
    }
}

/// The branches that stand elsewhere than when they were last looked at.
fn moved(pipeline: &Pipeline, refs: &[Ref]) -> Vec<Moved> {
    let branches: BTreeMap<&String, &CommitId> =
        refs.iter().filter(|kept| kept.name.starts_with("refs/heads/")).map(|kept| (&kept.name, &kept.commit)).collect();
    let changed =
        branches.iter().filter(|(name, commit)| pipeline.considered.get(**name) != Some(**commit)).map(|(name, commit)| {
            let old = pipeline.considered.get(*name).cloned();
            Moved { git_ref: (*name).clone(), old, new: Some((*commit).clone()) }
        });
    let gone = pipeline.considered.keys().filter(|name| !branches.contains_key(name));
    let gone = gone.map(|name| Moved { git_ref: name.clone(), old: None, new: None });
    changed.chain(gone).collect()
}

/// Whether what changed between `old` and `new` concerns the pipeline, and the room its build asks for.
async fn concern(
    leading: &Leading,
    pipeline: &Pipeline,
    repository: &RepositoryName,
    old: Option<&CommitId>,
    new: &CommitId,
) -> Result<Concern, GitError> {
    let path = leading.repositories.catch_up(repository).await?;
    let mirror = leading.mirrors.of(&path.to_string_lossy(), None).await?;
    mirror.fetch().await?;
    let text = match mirror.file_at(new, &pipeline.file, FILE_BYTES_MAX).await {
        Ok(text) => text,
        Err(GitError::PathNotFound { .. }) => {
            return Ok(Concern::Skips(format!("{} is not in commit {}", pipeline.file, new.short())));
        }
        Err(error) => return Err(error),
    };
    // A file that cannot be read is built all the same: the build says what is wrong with it, where people look.
    let Ok(file) = PipelineFile::parse(&String::from_utf8_lossy(&text)) else {
        return Ok(Concern::Builds(Resources::default()));
    };
    let resources = Resources { cpu_millis: file.build.cpu.0.try_into().unwrap_or(u32::MAX), memory: file.build.memory };
    let changed = match mirror.changed_paths(old, new).await {
        Ok(changed) => changed,
        // A filter that cannot be evaluated builds: the old commit may be gone after a forced push.
        Err(_) => return Ok(Concern::Builds(resources)),
    };
    if file.path_filter().concerns(&changed) {
        return Ok(Concern::Builds(resources));
    }
    Ok(Concern::Skips("nothing that it changed concerns this pipeline".to_owned()))
}
