//! `/v1/builds`: builds of commits.

use axum::{Json, extract::State};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::{
    access::Caller,
    app::{Answer, App, existing},
    input::{At, Body, Guards, Params},
    page::{self, Page},
    problem::Problem,
    views::build::BuildView,
};
use swell_model::{
    build::{Build, BuildState, Cause, OpenBuild, Resources, queue::queue_waits},
    command::{BuildAction, Outcome},
    event::Subject,
    ids::{BuildId, PipelineName},
    pipeline::Pipeline,
    release::Release,
    repository::CommitId,
    tables::{ReadTables, Scan, TablesError, key},
};
use swell_raft::View;
use swell_repositories::FoundCommit;

/// Filters of a list of builds.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BuildFilter {
    /// Returns only builds of this pipeline.
    #[param(value_type = Option<String>)]
    pipeline: Option<PipelineName>,
    /// Returns only builds in this state, such as `queued`; or `open` or `ended` ones.
    state: Option<String>,
    /// `next` of the previous page.
    cursor: Option<String>,
    /// Number of items, 1 to 500. Default: 50.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
}

/// Lists builds, newest first, without attempts.
#[utoipa::path(get, path = "/v1/builds", tag = "builds", params(BuildFilter), responses((status = OK, body = Page<BuildView>)))]
pub async fn list(State(app): State<App>, Params(query): Params<BuildFilter>) -> Result<Json<Page<BuildView>>, Problem> {
    let limit = page::limit(query.limit)?;
    let before: Option<BuildId> = page::cursor(&query.cursor)?;
    let state = query
        .state
        .as_deref()
        .map(|name| page::states(name, "builds", &BuildState::ALL, BuildState::name, BuildState::is_end))
        .transpose()?;
    let pipeline = query.pipeline;
    app.read(move |view| {
        let wanted = |build: &Build| {
            pipeline.as_ref().is_none_or(|pipeline| build.pipeline == *pipeline)
                && state.as_ref().is_none_or(|states| states.contains(&build.state))
        };
        let scan = Scan { after: before.map(|id| key(id.0)), ..Scan::all().backwards() };
        let only_open = state.as_ref().is_some_and(|states| states.iter().all(|state| !state.is_end()));
        let (builds, last) = if only_open {
            let open = |open: &OpenBuild| -> Result<Option<Build>, TablesError> {
                if pipeline.as_ref().is_some_and(|pipeline| open.pipeline != *pipeline) {
                    return Ok(None);
                }
                Ok(view.get::<Build>(&key(open.build.0))?.filter(&wanted))
            };
            let (builds, last) = page::collect_indexed(view, scan, limit, open)?;
            (builds, last.map(|open: OpenBuild| open.build))
        } else {
            let (builds, last) = page::collect(view, scan, limit, wanted)?;
            (builds, last.map(|build: Build| build.id))
        };
        let any_queued = builds.iter().any(|build| build.state == BuildState::Queued);
        let mut waits = if any_queued { queue_waits(view)? } else { Default::default() };
        let items = builds.iter().map(|build| BuildView::brief(build, waits.remove(&build.id))).collect();
        Ok(Json(Page { items, next: last.map(|last| last.to_string()), as_of: view.applied() }))
    })
    .await
}

/// Shows a build with its attempts.
#[utoipa::path(
    get, path = "/v1/builds/{id}", tag = "builds",
    params(("id" = String, Path)),
    responses((status = OK, body = BuildView)),
)]
pub async fn get(State(app): State<App>, At(id): At<BuildId>) -> Result<Answer<BuildView>, Problem> {
    shown(&app, id).await
}

async fn shown(app: &App, id: BuildId) -> Result<Answer<BuildView>, Problem> {
    app.read(move |view| {
        let build = of(view, id)?;
        let revision = build.revision;
        Ok(Answer::read(view, full(view, build)?, Some(revision)))
    })
    .await
}

/// The build `id`, or the problem that it does not exist.
pub fn of(view: &View, id: BuildId) -> Result<Build, Problem> {
    existing(view, &key(id.0), || Subject::Build(id))
}

/// The view of a build with its attempts and what it waits for.
pub fn full(view: &View, build: Build) -> Result<BuildView, Problem> {
    let waits = if build.state == BuildState::Queued { queue_waits(view)?.remove(&build.id) } else { None };
    Ok(BuildView::full(build, waits))
}

/// A build to request. Without `commit`, the commit that `ref` points to is built; without both, the head of the default branch.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateBuild {
    /// Name of the pipeline.
    #[schema(value_type = String)]
    pipeline: PipelineName,
    /// Commit to build: its full hash.
    #[schema(value_type = Option<String>)]
    commit: Option<CommitId>,
    /// Branch or tag, by its short or full name.
    #[serde(rename = "ref")]
    git_ref: Option<String>,
    /// Builds the commit again even if it has a build.
    #[serde(default)]
    again: bool,
}

/// Requests a build of a commit. Returns the existing build if the commit has one, unless `again` is set.
#[utoipa::path(
    post, path = "/v1/builds", tag = "builds",
    request_body = CreateBuild,
    responses((status = CREATED, body = BuildView)),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    Body(wanted): Body<CreateBuild>,
) -> Result<Answer<BuildView>, Problem> {
    if let Some(outcome) = app.remembered(&guards).await? {
        return created(&app, &outcome).await;
    }
    let CreateBuild { pipeline, commit, git_ref, again } = wanted;
    let name = pipeline.clone();
    let (source, resources) = app
        .read_latest(move |view| {
            let pipeline: Pipeline = existing(view, &key(name.as_str()), || Subject::Pipeline(name.clone()))?;
            Ok((pipeline.source, newest_request(view, &pipeline.name)?))
        })
        .await?;
    let found = match commit {
        Some(commit) => FoundCommit { commit, git_ref: git_ref.unwrap_or_else(|| "HEAD".to_owned()) },
        None => app.commits.resolve(&source, git_ref).await?,
    };
    let FoundCommit { commit, git_ref } = found;
    let action = BuildAction::Request { pipeline, commit, git_ref, cause: Cause::Manual, again, resources };
    let outcome = app.propose(caller, guards, action).await?;
    created(&app, &outcome).await
}

async fn created(app: &App, outcome: &Outcome) -> Result<Answer<BuildView>, Problem> {
    let id = build_id(outcome)?;
    Ok(shown(app, id).await?.after(outcome).created(format!("/v1/builds/{id}")))
}

/// The resources that the pipeline's newest release requested: those of the new build are known only after its checkout.
fn newest_request(view: &View, pipeline: &PipelineName) -> Result<Resources, Problem> {
    let newest: Vec<Release> = view.scan(&Scan::prefix(key(pipeline.as_str())).backwards(), 1)?;
    let Some(release) = newest.into_iter().next() else { return Ok(Resources::default()) };
    let build = release.file.build;
    let cpu_millis = u32::try_from(build.cpu.0).unwrap_or(u32::MAX);
    Ok(Resources { cpu_millis, memory: build.memory })
}

/// The build that an outcome is about.
pub fn build_id(outcome: &Outcome) -> Result<BuildId, Problem> {
    match &outcome.subject {
        Subject::Build(id) => Ok(*id),
        other => Err(Problem::internal(format_args!("a build's command was about {other}"))),
    }
}

/// Cancels a build.
#[utoipa::path(
    post, path = "/v1/builds/{id}/cancel", tag = "builds",
    params(("id" = String, Path)),
    responses((status = OK, body = BuildView)),
)]
pub async fn cancel(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    At(id): At<BuildId>,
) -> Result<Answer<BuildView>, Problem> {
    let outcome = app.propose(caller, guards, BuildAction::Cancel { build: id }).await?;
    Ok(shown(&app, id).await?.after(&outcome))
}

/// Queues a failed build again. The answer may be a new build of the same commit.
#[utoipa::path(
    post, path = "/v1/builds/{id}/retry", tag = "builds",
    params(("id" = String, Path)),
    responses((status = OK, body = BuildView)),
)]
pub async fn retry(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    At(id): At<BuildId>,
) -> Result<Answer<BuildView>, Problem> {
    let outcome = app.propose(caller, guards, BuildAction::Retry { build: id }).await?;
    let id = build_id(&outcome)?;
    Ok(shown(&app, id).await?.after(&outcome))
}
