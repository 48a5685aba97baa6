//! `/v1/blobs`: output of failed instances that agents upload, by its digest.

use axum::RequestExt as _;
use axum::{
    Json,
    body::Bytes,
    extract::{DefaultBodyLimit, Request, State},
    response::Response,
};
use hyper::{HeaderMap, Method, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::artifacts::serve;
use crate::{app::App, input::At, problem::Problem};
use swell_artifacts::store::stream_of;
use swell_model::digest::Digest;

/// The largest blob, in bytes.
pub const BLOB_BYTES_MAX: usize = 64 << 10;

/// A stored blob.
#[derive(Debug, Serialize, ToSchema)]
pub struct BlobView {
    /// Digest, for `/v1/blobs/{digest}`.
    digest: String,
    /// Size in bytes.
    size_bytes: u64,
}

/// Stores 1 byte to 64 KiB of output.
#[utoipa::path(
    post, path = "/v1/blobs", tag = "artifacts",
    request_body(content = String, content_type = "application/octet-stream"),
    responses((status = CREATED, body = BlobView)),
)]
pub async fn create(State(app): State<App>, mut request: Request) -> Result<(StatusCode, Json<BlobView>), Problem> {
    DefaultBodyLimit::max(BLOB_BYTES_MAX).apply(&mut request);
    let bytes: Bytes = request.extract().await.map_err(|_| {
        let detail = format!("the blob exceeds {BLOB_BYTES_MAX} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail, "send the end of the output")
    })?;
    if bytes.is_empty() {
        return Err(Problem::invalid("the blob is empty", "send at least one byte"));
    }
    let stored = app.content.put(stream_of(bytes), None).await?;
    Ok((StatusCode::CREATED, Json(BlobView { digest: stored.digest.to_string(), size_bytes: stored.size })))
}

/// Downloads a blob.
#[utoipa::path(
    get, path = "/v1/blobs/{digest}", tag = "artifacts",
    params(("digest" = String, Path)),
    responses((status = OK, content_type = "application/octet-stream")),
)]
pub async fn get(
    State(app): State<App>,
    At(digest): At<Digest>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let too_large = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            "no_content",
            format!("there is no blob {digest}"),
            "artifacts are served under `/v1/artifacts`",
        )
    };
    match app.content.stat(digest).await? {
        Some(stored) if stored.size <= BLOB_BYTES_MAX as u64 => Ok(serve(&app, digest, &method, &headers).await),
        _ => Err(too_large()),
    }
}
