//! `/git/{repository}/…`: git's smart HTTP protocol for hosted repositories, passed on to their store.

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use hyper::StatusCode;

use crate::{access::Caller, app::App, input::At, problem::Problem};
use swell_model::{ids::RepositoryName, principal::Role};
use swell_repositories::Access;

/// Serves fetches and pushes. `shop` and `shop.git` are the same repository.
pub async fn serve(
    State(app): State<App>,
    Caller(caller): Caller,
    At((name, sub_path)): At<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let Some(hosted) = &app.git else {
        let hint = "create a pipeline for an external repository with `swell pipeline create NAME --url URL`";
        return Err(Problem::new(StatusCode::NOT_FOUND, "not_hosted", "this server hosts no repositories", hint));
    };
    let name: RepositoryName =
        name.strip_suffix(".git").unwrap_or(&name).parse().map_err(|error: swell_model::ids::IdError| {
            Problem::invalid(error.to_string(), "check the name in the repository's address")
        })?;
    // From the verified role, however the guard classified the request.
    let access = if caller.role.allows(Role::Developer) { Access::Write { pusher: caller.to_string() } } else { Access::Read };
    Ok(hosted.serve(&name, &sub_path, access, request).await.map(Body::new).into_response())
}
