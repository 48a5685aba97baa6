//! `/v1/releases`: what can be deployed.

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
    release::{Release, release_key},
    tables::{Key, ReadTables, Scan, key},
};
use swell_raft::View;

/// Which releases.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReleaseFilter {
    /// Only of this pipeline.
    #[param(value_type = Option<String>)]
    pipeline: Option<PipelineName>,
    /// Where the page begins: `next` of the one before.
    cursor: Option<String>,
    /// How many items, 1 to 500; 50 unless given.
    limit: Option<usize>,
}

/// Lists releases, newest first within a pipeline, without their pipeline files.
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

/// The release `id`, or the problem that there is none.
pub fn of(view: &View, id: &ReleaseId) -> Result<Release, Problem> {
    existing(view, &release_key(id), || Subject::Release(id.clone()))
}

/// The release that is meant: `wanted`, which must be the pipeline's, else its newest.
pub fn chosen(view: &View, pipeline: &PipelineName, wanted: Option<ReleaseId>) -> Result<ReleaseId, Problem> {
    match wanted {
        Some(wanted) if wanted.pipeline != *pipeline => Err(Problem::invalid(
            format!("{wanted} is not a release of {pipeline}"),
            "name one of its own: `swell history` lists them",
        )),
        Some(wanted) => Ok(wanted),
        None => {
            let newest: Vec<Release> = view.scan(&Scan::prefix(key(pipeline.as_str())).backwards(), 1)?;
            newest.into_iter().next().map(|release| release.id).ok_or_else(|| {
                let detail = format!("{pipeline} has no release yet");
                Problem::new(hyper::StatusCode::CONFLICT, "no_release", detail, format!("build one: `swell build {pipeline}`"))
            })
        }
    }
}
