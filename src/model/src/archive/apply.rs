//! Archiving: records that were written to a segment leave state with their indexes. What something still refers to stays.

use crate::{
    apply::context::{Context, invalid},
    archive::{ARCHIVED_AT_ONCE_MAX, Archivable, ArchiveEntry},
    build::{Build, BuildByCommit},
    command::ArchiveAction,
    digest::Digest,
    event::{DataKey, EventKind, Subject},
    ids::{BuildId, PipelineName, ReleaseId, RolloutId},
    pipeline::{ConsideredRef, considered_key},
    rejection::RuleError,
    release::{Release, ReleaseUse, release_key, uses},
    repository::CommitId,
    rollout::{Deployment, Rollout, deployment_key},
    tables::{Record, Scan, Tables, TablesError, key},
    units::Millis,
};

/// How long what is due stays when something refers to it, before it is due again.
const POSTPONED_FOR: Millis = Millis(86_400_000);

/// What becomes of an entry that is due.
#[derive(PartialEq, Eq)]
enum Fate {
    Archived(Subject),
    /// Something refers to it.
    Postponed,
    /// It left before, or whoever stops using it makes a new entry.
    Dropped,
}

pub(crate) fn apply<T: Tables>(context: &mut Context<'_, T>, action: &ArchiveAction) -> Result<Subject, RuleError> {
    match action {
        ArchiveAction::Remove { entries, segment } => remove(context, entries, segment),
    }
}

fn remove<T: Tables>(context: &mut Context<'_, T>, entries: &[ArchiveEntry], segment: &Digest) -> Result<Subject, RuleError> {
    if entries.len() > ARCHIVED_AT_ONCE_MAX {
        return Err(invalid("entries", format!("at most {ARCHIVED_AT_ONCE_MAX} are archived at once")));
    }
    for entry in entries {
        if entry.due_at > context.at {
            return Err(invalid("entries", format!("{} is not due for the archive yet", entry.what)));
        }
        if context.tables.get::<ArchiveEntry>(&entry.key())?.is_none() {
            continue;
        }
        let fate = match &entry.what {
            Archivable::Build(id) => build(context.tables, *id)?,
            Archivable::Rollout(id) => rollout(context.tables, *id)?,
            Archivable::Release(id) => release(context.tables, id)?,
        };
        context.tables.delete::<ArchiveEntry>(&entry.key())?;
        match fate {
            Fate::Archived(subject) => {
                let kind = match &subject {
                    Subject::Build(_) => EventKind::BuildArchived,
                    Subject::Rollout(_) => EventKind::RolloutArchived,
                    _ => EventKind::ReleaseArchived,
                };
                context.event(subject, kind).data(DataKey::Segment, segment);
            }
            Fate::Postponed => {
                let due_at = context.at.plus(POSTPONED_FOR);
                context.tables.put(&ArchiveEntry { due_at, what: entry.what.clone() })?;
            }
            Fate::Dropped => {}
        }
    }
    Ok(Subject::Cluster)
}

/// Whether the ref still stands at the commit: what was made of it is the latest of its branch.
fn is_latest<T: Tables>(tables: &T, pipeline: &PipelineName, git_ref: &str, commit: &CommitId) -> Result<bool, TablesError> {
    let head: Option<ConsideredRef> = tables.get(&considered_key(pipeline, git_ref))?;
    Ok(head.is_some_and(|head| head.commit == *commit))
}

fn build<T: Tables>(tables: &mut T, id: BuildId) -> Result<Fate, TablesError> {
    let Some(build) = tables.get::<Build>(&key(id.0))? else { return Ok(Fate::Dropped) };
    let by_commit = key(build.pipeline.as_str()).then(build.commit.as_str());
    let newest: Option<BuildByCommit> = tables.get(&by_commit)?;
    let is_newest = newest.is_some_and(|newest| newest.build == id);
    if !build.state.is_end() || is_newest && is_latest(tables, &build.pipeline, &build.git_ref, &build.commit)? {
        return Ok(Fate::Postponed);
    }
    if is_newest {
        tables.delete::<BuildByCommit>(&by_commit)?;
    }
    tables.delete::<Build>(&key(id.0))?;
    Ok(Fate::Archived(Subject::Build(id)))
}

fn rollout<T: Tables>(tables: &mut T, id: RolloutId) -> Result<Fate, TablesError> {
    let Some(rollout) = tables.get::<Rollout>(&key(id.0))? else { return Ok(Fate::Dropped) };
    let deployment: Option<Deployment> = tables.get(&deployment_key(&rollout.environment, &rollout.pipeline))?;
    let is_named = deployment.is_some_and(|deployment| {
        deployment.history.iter().any(|past| past.rollout == id) || deployment.quarantined.iter().any(|kept| kept.rollout == id)
    });
    if !rollout.state.is_end() || is_named {
        return Ok(Fate::Postponed);
    }
    tables.delete::<Rollout>(&key(id.0))?;
    Ok(Fate::Archived(Subject::Rollout(id)))
}

fn release<T: Tables>(tables: &mut T, id: &ReleaseId) -> Result<Fate, TablesError> {
    if tables.get::<ReleaseUse>(&release_key(id))?.is_some() {
        return Ok(Fate::Dropped);
    }
    let Some(release) = tables.get::<Release>(&release_key(id))? else { return Ok(Fate::Dropped) };
    // The newest one says which number comes next, also for a pipeline that was removed.
    let newest: Vec<Release> = tables.scan(&Scan::prefix(key(id.pipeline.as_str())).backwards(), 1)?;
    let is_newest = newest.first().is_some_and(|newest| newest.id == *id);
    if is_newest || is_latest(tables, &id.pipeline, &release.git_ref, &release.commit)? {
        return Ok(Fate::Postponed);
    }
    tables.delete::<Release>(&release_key(id))?;
    uses::remove_release(tables, release.artifact)?;
    Ok(Fate::Archived(Subject::Release(id.clone())))
}
