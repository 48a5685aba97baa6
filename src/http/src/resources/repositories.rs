//! `/v1/repositories`: hosted git repositories.

use axum::{Json, extract::State};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::{
    access::Caller,
    app::{Answer, App, existing},
    input::{At, Body, Guards, Params},
    page::{self, Listing, Page},
    problem::Problem,
    views::pipeline::RepositoryView,
};
use swell_model::{
    command::RepositoryAction,
    event::Subject,
    ids::RepositoryName,
    repository::{Ref, Repository},
    tables::{Key, ReadTables, Scan, key},
};

/// How many refs a repository is shown with.
const REFS_SHOWN_MAX: usize = 1000;

/// Lists hosted repositories by name, without refs.
#[utoipa::path(
    get, path = "/v1/repositories", tag = "repositories",
    params(Listing),
    responses((status = OK, body = Page<RepositoryView>)),
)]
pub async fn list(State(app): State<App>, Params(query): Params<Listing>) -> Result<Json<Page<RepositoryView>>, Problem> {
    let limit = page::limit(query.limit)?;
    let after: Option<RepositoryName> = page::cursor(&query.cursor)?;
    app.read(move |view| {
        let scan = page::scan(Key::all(), after.map(|name| key(name.as_str())));
        let (repositories, last) = page::collect::<_, Repository>(view, scan, limit, |_| true)?;
        let items = repositories.into_iter().map(|repository| RepositoryView::new(repository, Vec::new())).collect();
        Ok(Json(Page { items, next: last.map(|last| last.name.to_string()), as_of: view.applied() }))
    })
    .await
}

/// Shows a hosted repository with its refs.
#[utoipa::path(
    get, path = "/v1/repositories/{name}", tag = "repositories",
    params(("name" = String, Path)),
    responses((status = OK, body = RepositoryView)),
)]
pub async fn get(State(app): State<App>, At(name): At<RepositoryName>) -> Result<Answer<RepositoryView>, Problem> {
    shown(&app, name).await
}

async fn shown(app: &App, name: RepositoryName) -> Result<Answer<RepositoryView>, Problem> {
    app.read(move |view| {
        let repository: Repository = existing(view, &key(name.as_str()), || Subject::Repository(name.clone()))?;
        let refs: Vec<Ref> = view.scan(&Scan::prefix(key(name.as_str())), REFS_SHOWN_MAX)?;
        Ok(Answer::read(view, RepositoryView::new(repository, refs), None))
    })
    .await
}

/// A hosted repository to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRepository {
    /// Name of the repository.
    #[schema(value_type = String)]
    name: RepositoryName,
    /// Default branch. Default: `main`.
    #[serde(default = "main_branch")]
    default_branch: String,
}

fn main_branch() -> String {
    "main".to_owned()
}

/// Hosts a new repository.
#[utoipa::path(
    post, path = "/v1/repositories", tag = "repositories",
    request_body = CreateRepository,
    responses((status = CREATED, body = RepositoryView)),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    Body(wanted): Body<CreateRepository>,
) -> Result<Answer<RepositoryView>, Problem> {
    let CreateRepository { name, default_branch } = wanted;
    let outcome = app.propose(caller, guards, RepositoryAction::Create { name: name.clone(), default_branch }).await?;
    let location = format!("/v1/repositories/{name}");
    Ok(shown(&app, name).await?.after(&outcome).created(location))
}
