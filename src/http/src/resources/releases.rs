//! `/v1/releases`: releases of pipelines.

use axum::{Json, extract::State};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::{
    app::{Answer, App, existing},
    input::{At, Params},
    page::{self, Page},
    problem::Problem,
    views::release::ReleaseView,
};
use swell_model::{
    event::Subject,
    ids::{PipelineName, ReleaseId},
    pipeline::Pipeline,
    release::{Release, release_key},
    tables::{Key, ReadTables, Scan, key},
};
use swell_raft::View;

/// Filters of a list of releases.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReleaseFilter {
    /// Returns only releases of this pipeline.
    #[param(value_type = Option<String>)]
    pipeline: Option<PipelineName>,
    /// `next` of the previous page.
    cursor: Option<String>,
    /// Number of items, 1 to 500. Default: 50.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
}

/// Lists releases, newest first within each pipeline, without pipeline files.
#[utoipa::path(
    get, path = "/v1/releases", tag = "releases",
    params(ReleaseFilter),
    responses((status = OK, body = Page<ReleaseView>)),
)]
pub async fn list(State(app): State<App>, Params(query): Params<ReleaseFilter>) -> Result<Json<Page<ReleaseView>>, Problem> {
    let limit = page::limit(query.limit)?;
    let before: Option<ReleaseId> = page::cursor(&query.cursor)?;
    app.read(move |view| {
        let prefix = query.pipeline.map_or_else(Key::all, |pipeline| key(pipeline.as_str()));
        let scan = Scan { prefix, after: before.map(|id| release_key(&id)), backwards: true };
        let (releases, last) = page::collect::<_, Release>(view, scan, limit, |_| true)?;
        let items = releases.iter().map(ReleaseView::brief).collect();
        Ok(Json(Page { items, next: last.map(|last| last.id.to_string()), as_of: view.applied() }))
    })
    .await
}

/// Shows a release with its pipeline file.
#[utoipa::path(
    get, path = "/v1/releases/{id}", tag = "releases",
    params(("id" = String, Path)),
    responses((status = OK, body = ReleaseView)),
)]
pub async fn get(State(app): State<App>, At(id): At<ReleaseId>) -> Result<Answer<ReleaseView>, Problem> {
    app.read(move |view| Ok(Answer::read(view, ReleaseView::full(of(view, &id)?), None))).await
}

/// The release `id`, or the problem that it does not exist.
pub fn of(view: &View, id: &ReleaseId) -> Result<Release, Problem> {
    existing(view, &release_key(id), || Subject::Release(id.clone()))
}

/// The release `wanted`, which must belong to the pipeline, else the pipeline's newest.
pub fn chosen(view: &View, pipeline: &PipelineName, wanted: Option<ReleaseId>) -> Result<ReleaseId, Problem> {
    // A mistyped pipeline is reported as such, not as one without releases.
    let _: Pipeline = existing(view, &key(pipeline.as_str()), || Subject::Pipeline(pipeline.clone()))?;
    match wanted {
        Some(wanted) if wanted.pipeline != *pipeline => Err(Problem::invalid(
            format!("{wanted} is not a release of {pipeline}"),
            format!("`swell history {pipeline}` lists its releases"),
        )),
        Some(wanted) => Ok(wanted),
        None => {
            let newest: Vec<Release> = view.scan(&Scan::prefix(key(pipeline.as_str())).backwards(), 1)?;
            newest.into_iter().next().map(|release| release.id).ok_or_else(|| {
                let detail = format!("pipeline {pipeline} has no release");
                Problem::new(
                    hyper::StatusCode::CONFLICT,
                    "no_release",
                    detail,
                    format!("build one with `swell build {pipeline}`"),
                )
            })
        }
    }
}
