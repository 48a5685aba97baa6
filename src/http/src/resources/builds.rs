//! `/v1/builds`: commits being built.

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
    build::{Build, BuildState, Cause, Resources, queue::queue_waits},
    command::{BuildAction, Outcome},
    event::Subject,
    ids::{BuildId, PipelineName},
    pipeline::Pipeline,
    release::Release,
    repository::CommitId,
    tables::{ReadTables, Scan, key},
};
use swell_raft::View;
use swell_repositories::FoundCommit;

/// Which builds.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BuildFilter {
    /// Only of this pipeline.
    #[param(value_type = Option<String>)]
    pipeline: Option<PipelineName>,
    /// Only in this state, such as `queued`; or `open` or `ended`.
    state: Option<String>,
    /// Where the page begins: `next` of the one before.
    cursor: Option<String>,
    /// How many items, 1 to 500; 50 unless given.
    limit: Option<usize>,
}

/// Lists builds, newest first, without their attempts.
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
        let (builds, last) = page::collect(view, scan, limit, wanted)?;
        let any_queued = builds.iter().any(|build| build.state == BuildState::Queued);
        let mut waits = if any_queued { queue_waits(view)? } else { Default::default() };
        let items = builds.iter().map(|build| BuildView::brief(build, waits.remove(&build.id))).collect();
        Ok(Json(Page { items, next: last.map(|last| last.id.to_string()), as_of: view.applied() }))
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

/// The build `id`, or the problem that there is none.
pub fn of(view: &View, id: BuildId) -> Result<Build, Problem> {
    existing(view, &key(id.0), || Subject::Build(id))
}

/// With its attempts and what it waits for.
pub fn full(view: &View, build: Build) -> Result<BuildView, Problem> {
    let waits = if build.state == BuildState::Queued { queue_waits(view)?.remove(&build.id) } else { None };
    Ok(BuildView::full(build, waits))
}

/// A build to make. Without `commit` it is the one that `ref` points at now; without both, the default branch's.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateBuild {
    /// Whose.
    #[schema(value_type = String)]
    pipeline: PipelineName,
    /// Which commit: all of its digits.
    #[schema(value_type = Option<String>)]
    commit: Option<CommitId>,
    /// A branch or tag, by its short or full name.
    #[serde(rename = "ref")]
    git_ref: Option<String>,
    /// Build it anew although it has a build.
    #[serde(default)]
    again: bool,
}

/// Builds a commit. A commit that has a build is answered with that build, unless `again`.
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
            Ok((pipeline.source, asked_last(view, &pipeline.name)?))
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

/// The room that the pipeline's newest release asked for; what a build asks for is known only after its checkout.
fn asked_last(view: &View, pipeline: &PipelineName) -> Result<Resources, Problem> {
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

/// Stops a build.
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

/// Queues a failed build again.
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
    // A retry may make a build of its own; the answer shows whichever is at work.
    let id = build_id(&outcome)?;
    Ok(shown(&app, id).await?.after(&outcome))
}
