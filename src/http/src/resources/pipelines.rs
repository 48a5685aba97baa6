//! `/v1/pipelines`: repositories that are built and deployed.

use axum::{Json, extract::State};
use hyper::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::{
    access::Caller,
    app::{Answer, App, existing},
    input::{At, Body, Guards, Params},
    page::{self, Listing, Page},
    problem::Problem,
    views::pipeline::{PipelineView, SourceView},
};
use swell_model::{
    command::PipelineAction,
    event::Subject,
    ids::PipelineName,
    pipeline::{Pipeline, Retention, Source},
    tables::{Key, key},
    units::Millis,
};

/// Lists pipelines by name.
#[utoipa::path(
    get, path = "/v1/pipelines", tag = "pipelines",
    params(Listing),
    responses((status = OK, body = Page<PipelineView>)),
)]
pub async fn list(State(app): State<App>, Params(query): Params<Listing>) -> Result<Json<Page<PipelineView>>, Problem> {
    let limit = page::limit(query.limit)?;
    let after: Option<PipelineName> = page::cursor(&query.cursor)?;
    app.read(move |view| {
        let scan = page::scan(Key::all(), after.map(|name| key(name.as_str())));
        let (pipelines, last) = page::collect::<_, Pipeline>(view, scan, limit, |_| true)?;
        let items = pipelines.into_iter().map(PipelineView::from).collect();
        Ok(Json(Page { items, next: last.map(|last| last.name.to_string()), as_of: view.applied() }))
    })
    .await
}

/// Shows a pipeline.
#[utoipa::path(
    get, path = "/v1/pipelines/{name}", tag = "pipelines",
    params(("name" = String, Path)),
    responses((status = OK, body = PipelineView)),
)]
pub async fn get(State(app): State<App>, At(name): At<PipelineName>) -> Result<Answer<PipelineView>, Problem> {
    shown(&app, name).await
}

async fn shown(app: &App, name: PipelineName) -> Result<Answer<PipelineView>, Problem> {
    app.read(move |view| {
        let pipeline: Pipeline = existing(view, &key(name.as_str()), || Subject::Pipeline(name.clone()))?;
        let revision = pipeline.revision;
        Ok(Answer::read(view, pipeline.into(), Some(revision)))
    })
    .await
}

/// A pipeline to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePipeline {
    /// Name of the pipeline.
    #[schema(value_type = String)]
    name: PipelineName,
    /// Repository that its commits come from.
    #[schema(value_type = SourceView)]
    source: Source,
    /// Path of the pipeline file in the repository. Default: `swell.toml`.
    #[serde(default = "file")]
    file: String,
    /// Number of its builds that may run at once. Default: 1.
    #[serde(default = "concurrency")]
    concurrency: u32,
    /// Whether a newer push replaces a queued build of the same ref. Default: true.
    #[serde(default = "supersede")]
    supersede: bool,
    /// Number of newest releases whose artifacts are kept. Default: 10.
    retention_releases: Option<u32>,
    /// Age up to which artifacts are kept, such as `30d`.
    #[schema(value_type = Option<String>)]
    retention_age: Option<Millis>,
    /// How long builds, rollouts and releases stay in state after their end, before they leave it for the archive; `30d` unless given.
    #[schema(value_type = Option<String>)]
    retention_history: Option<Millis>,
}

fn file() -> String {
    "swell.toml".to_owned()
}

fn concurrency() -> u32 {
    1
}

fn supersede() -> bool {
    true
}

/// Creates a pipeline.
#[utoipa::path(
    post, path = "/v1/pipelines", tag = "pipelines",
    request_body = CreatePipeline,
    responses((status = CREATED, body = PipelineView)),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    Body(wanted): Body<CreatePipeline>,
) -> Result<Answer<PipelineView>, Problem> {
    let CreatePipeline { name, source, file, concurrency, supersede, retention_releases, retention_age, retention_history } =
        wanted;
    let default = Retention::default();
    let retention = Retention {
        releases: retention_releases.unwrap_or(default.releases),
        age: retention_age.unwrap_or(default.age),
        history: retention_history.unwrap_or(default.history),
    };
    let action = PipelineAction::Create { name: name.clone(), source, file, concurrency, supersede, retention };
    let outcome = app.propose(caller, guards, action).await?;
    let location = format!("/v1/pipelines/{name}");
    Ok(shown(&app, name).await?.after(&outcome).created(location))
}

/// Removes a pipeline that is not deployed anywhere.
#[utoipa::path(
    delete, path = "/v1/pipelines/{name}", tag = "pipelines",
    params(("name" = String, Path)),
    responses((status = NO_CONTENT)),
)]
pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    At(name): At<PipelineName>,
) -> Result<StatusCode, Problem> {
    app.propose(caller, guards, PipelineAction::Remove { name }).await?;
    Ok(StatusCode::NO_CONTENT)
}
