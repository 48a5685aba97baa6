//! `/git/{repository}/…`: git's smart HTTP for hosted repositories. Knows nothing of git but where requests go.

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use hyper::StatusCode;

use crate::{access::Caller, app::App, input::At, problem::Problem};
use swell_model::{ids::RepositoryName, principal::Role};
use swell_repositories::Access;

/// Fetching and pushing. `shop` and `shop.git` are the same repository.
pub async fn serve(
    State(app): State<App>,
    Caller(caller): Caller,
    At((name, sub_path)): At<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let Some(hosted) = &app.git else {
        let hint = "register the repository's own address: `swell pipeline create`";
        return Err(Problem::new(StatusCode::NOT_FOUND, "not_hosted", "this server hosts no repositories", hint));
    };
    let name: RepositoryName = name
        .strip_suffix(".git")
        .unwrap_or(&name)
        .parse()
        .map_err(|error: swell_model::ids::IdError| Problem::invalid(error.to_string(), "look at the address"))?;
    // From the role that was proven, whatever the guard took the request for.
    let access = if caller.role.allows(Role::Developer) { Access::Write { pusher: caller.to_string() } } else { Access::Read };
    Ok(hosted.serve(&name, &sub_path, access, request).await.map(Body::new).into_response())
}
