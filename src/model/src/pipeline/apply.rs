//! Pipelines: registering, forgetting, and remembering which refs were considered.

use crate::apply::context::{Context, invalid};
use crate::{
    build::PipelineLoad,
    command::PipelineAction,
    event::{DataKey, EventKind, Subject},
    fleet::Environment,
    ids::PipelineName,
    pipeline::{CONCURRENCY_MAX, ConsideredRef, Pipeline, RETAINED_RELEASES_MAX, Source, considered_key},
    rejection::{Rejection, RuleError},
    release::Release,
    repository::{CommitId, Repository},
    rollout::{Deployment, FORMER_RELEASES_KEPT, deployment_key},
    tables::{SCAN_RECORDS_MAX, Scan, Tables, key},
    units::Timestamp,
};

pub(crate) fn apply<T: Tables>(context: &mut Context<'_, T>, action: &PipelineAction) -> Result<Subject, RuleError> {
    match action {
        PipelineAction::Create { name, source, file, concurrency, supersede, retention } => {
            let draft = Pipeline {
                name: name.clone(),
                source: source.clone(),
                file: file.clone(),
                concurrency: *concurrency,
                supersede: *supersede,
                retention: *retention,
                next_release: 1,
                created_at: Timestamp(0),
                revision: 0,
            };
            create(context, draft)
        }
        PipelineAction::Remove { name } => remove(context, name),
        PipelineAction::Considered { name, git_ref, commit, why } => {
            context.pipeline(name)?;
            consider(context, name, git_ref, commit.as_ref())?;
            let subject = Subject::Pipeline(name.clone());
            let event = context.event(subject.clone(), EventKind::PipelinePushSkipped).data(DataKey::Ref, git_ref).note(why);
            if let Some(commit) = commit {
                event.data(DataKey::Commit, commit);
            }
            Ok(subject)
        }
    }
}

fn create<T: Tables>(context: &mut Context<'_, T>, draft: Pipeline) -> Result<Subject, RuleError> {
    let subject = Subject::Pipeline(draft.name.clone());
    if context.tables.get::<Pipeline>(&key(draft.name.as_str()))?.is_some() {
        return Err(Rejection::Exists(subject).into());
    }
    check_file(&draft.file)?;
    if !(1..=CONCURRENCY_MAX).contains(&draft.concurrency) {
        return Err(invalid("concurrency", format!("it must be between 1 and {CONCURRENCY_MAX}")));
    }
    if draft.retention.releases < FORMER_RELEASES_KEPT as u32 {
        let least = format!("at least {FORMER_RELEASES_KEPT} releases must be kept, or there is nothing to roll back to");
        return Err(invalid("retention", least));
    }
    if draft.retention.releases > RETAINED_RELEASES_MAX {
        return Err(invalid("retention", format!("at most {RETAINED_RELEASES_MAX} releases can be kept")));
    }
    match &draft.source {
        Source::Hosted(repository) => {
            if context.tables.get::<Repository>(&key(repository.as_str()))?.is_none() {
                return Err(Rejection::NotFound(Subject::Repository(repository.clone())).into());
            }
        }
        Source::Remote(address) => {
            if address.is_empty() || address.starts_with('-') || address.len() > 2000 || address.chars().any(char::is_control) {
                return Err(invalid("source", format!("`{address}` is not an address that git can fetch from")));
            }
        }
    }
    // Releases never change: one that goes by a name that was used before goes on counting.
    let of_the_name = Scan::prefix(key(draft.name.as_str())).backwards();
    let newest: Vec<Release> = context.tables.scan(&of_the_name, 1)?;
    let next_release = newest.first().map_or(1, |release| release.id.number + 1);
    context.tables.put(&Pipeline { created_at: context.at, revision: context.index, next_release, ..draft })?;
    context.event(subject.clone(), EventKind::PipelineCreated);
    context.created.push(subject.clone());
    Ok(subject)
}

fn check_file(file: &str) -> Result<(), RuleError> {
    let inside = !file.starts_with('/') && file.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if inside && file.len() <= 500 && !file.chars().any(char::is_control) {
        return Ok(());
    }
    Err(invalid("file", format!("`{file}` is not a path within the repository, such as `services/shop/swell.toml`")))
}

fn remove<T: Tables>(context: &mut Context<'_, T>, name: &PipelineName) -> Result<Subject, RuleError> {
    let pipeline = context.pipeline(name)?;
    let subject = Subject::Pipeline(name.clone());
    context.check_revision(&subject, pipeline.revision)?;
    if context.tables.get::<PipelineLoad>(&key(name.as_str()))?.is_some() {
        return Err(Rejection::Needed { subject, by: "a build that has not ended".into() }.into());
    }
    for environment in context.tables.scan::<Environment>(&Scan::all(), SCAN_RECORDS_MAX)? {
        let deployment: Option<Deployment> = context.tables.get(&deployment_key(&environment.name, name))?;
        if deployment.is_some_and(|deployment| deployment.is_in_use() || deployment.next.is_some()) {
            return Err(Rejection::Needed { subject, by: format!("it is deployed in {}", environment.name) }.into());
        }
    }
    for seen in context.tables.scan::<ConsideredRef>(&Scan::prefix(key(name.as_str())), SCAN_RECORDS_MAX)? {
        context.tables.delete::<ConsideredRef>(&considered_key(name, &seen.git_ref))?;
    }
    context.tables.delete::<Pipeline>(&key(name.as_str()))?;
    context.event(subject.clone(), EventKind::PipelineRemoved);
    Ok(subject)
}

/// Remembers that `git_ref` was looked at where it stands now, or that it is gone.
pub(crate) fn consider<T: Tables>(
    context: &mut Context<'_, T>,
    pipeline: &PipelineName,
    git_ref: &str,
    commit: Option<&CommitId>,
) -> Result<(), RuleError> {
    match commit {
        None => context.tables.delete::<ConsideredRef>(&considered_key(pipeline, git_ref))?,
        Some(commit) => {
            let (pipeline, git_ref, commit) = (pipeline.clone(), git_ref.to_owned(), commit.clone());
            context.tables.put(&ConsideredRef { pipeline, git_ref, commit })?;
        }
    }
    Ok(())
}
