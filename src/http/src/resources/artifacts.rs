//! `/v1/artifacts`: the output of builds.

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use hyper::{HeaderMap, Method, header::CONTENT_LENGTH};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::{
    app::{Answer, App, existing},
    input::{At, Params},
    page::{self, Page},
    problem::Problem,
    views::release::ArtifactView,
};
use swell_artifacts::serve::serve_content;
use swell_model::{
    digest::Digest,
    event::Subject,
    ids::PipelineName,
    release::Artifact,
    tables::{Key, key},
};

/// Filters of a list of artifacts.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ArtifactFilter {
    /// Returns only artifacts of this pipeline.
    #[param(value_type = Option<String>)]
    pipeline: Option<PipelineName>,
    /// `next` of the previous page.
    cursor: Option<String>,
    /// Number of items, 1 to 500. Default: 50.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
}

/// Lists artifacts by digest.
#[utoipa::path(
    get, path = "/v1/artifacts", tag = "artifacts",
    params(ArtifactFilter),
    responses((status = OK, body = Page<ArtifactView>)),
)]
pub async fn list(State(app): State<App>, Params(query): Params<ArtifactFilter>) -> Result<Json<Page<ArtifactView>>, Problem> {
    let limit = page::limit(query.limit)?;
    let after: Option<Digest> = page::cursor(&query.cursor)?;
    let pipeline = query.pipeline;
    app.read(move |view| {
        let wanted = |artifact: &Artifact| pipeline.as_ref().is_none_or(|pipeline| artifact.pipeline == *pipeline);
        let scan = page::scan(Key::all(), after.map(|digest| key(digest.hex().as_str())));
        let (artifacts, last) = page::collect(view, scan, limit, wanted)?;
        let items = artifacts.into_iter().map(ArtifactView::from).collect();
        Ok(Json(Page { items, next: last.map(|last| last.digest.to_string()), as_of: view.applied() }))
    })
    .await
}

/// Shows an artifact.
#[utoipa::path(
    get, path = "/v1/artifacts/{digest}", tag = "artifacts",
    params(("digest" = String, Path)),
    responses((status = OK, body = ArtifactView)),
)]
pub async fn get(State(app): State<App>, At(digest): At<Digest>) -> Result<Answer<ArtifactView>, Problem> {
    app.read(move |view| {
        let artifact: Artifact = existing(view, &key(digest.hex().as_str()), || Subject::Artifact(digest))?;
        Ok(Answer::read(view, artifact.into(), None))
    })
    .await
}

/// Downloads an artifact, whole or by range.
#[utoipa::path(
    get, path = "/v1/artifacts/{digest}/content", tag = "artifacts",
    params(("digest" = String, Path)),
    responses(
        (status = OK, content_type = "application/octet-stream"),
        (status = PARTIAL_CONTENT, content_type = "application/octet-stream"),
    ),
)]
pub async fn content(
    State(app): State<App>,
    At(digest): At<Digest>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let artifact = known(&app, digest).await?;
    let answer = serve(&app, artifact.digest, &method, &headers).await;
    if answer.status().is_success() && method == Method::GET {
        let length = answer.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        app.meters.artifact_served(length.unwrap_or_default());
    }
    Ok(answer)
}

/// Downloads the manifest of an artifact: its pieces and their hashes.
#[utoipa::path(
    get, path = "/v1/artifacts/{digest}/manifest", tag = "artifacts",
    params(("digest" = String, Path)),
    responses((status = OK, content_type = "application/octet-stream")),
)]
pub async fn manifest(
    State(app): State<App>,
    At(digest): At<Digest>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let artifact = known(&app, digest).await?;
    Ok(serve(&app, artifact.manifest, &method, &headers).await)
}

/// The artifact with this digest. Other objects of the content store have endpoints and roles of their own.
async fn known(app: &App, digest: Digest) -> Result<Artifact, Problem> {
    app.read(move |view| existing(view, &key(digest.hex().as_str()), || Subject::Artifact(digest))).await
}

/// An answer with the content of `digest`.
pub async fn serve(app: &App, digest: Digest, method: &Method, headers: &HeaderMap) -> Response {
    serve_content(&*app.content, digest, headers, method).await.map(Body::new).into_response()
}
