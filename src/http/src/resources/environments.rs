//! `/v1/environments`: sets of targets, the policy for changing them, and what runs there.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::{
    access::Caller,
    app::{Answer, App, existing},
    input::{At, Body, Guards, Params},
    page::{self, Listing, Page},
    problem::Problem,
    views::{
        fleet::{DeploymentView, EnvironmentView},
        targets::NAMED_MAX,
    },
};
use swell_model::{
    command::EnvironmentAction,
    event::Subject,
    fleet::{Environment, PolicyLimits},
    ids::{EnvironmentName, PipelineName, ReleaseId},
    rollout::{Deployment, deployment_key},
    tables::{Key, key},
    units::{Amount, Millis},
};

/// Lists environments by name, with the number of their targets.
#[utoipa::path(
    get, path = "/v1/environments", tag = "environments",
    params(Listing),
    responses((status = OK, body = Page<EnvironmentView>)),
)]
pub async fn list(State(app): State<App>, Params(query): Params<Listing>) -> Result<Json<Page<EnvironmentView>>, Problem> {
    let limit = page::limit(query.limit)?;
    let after: Option<EnvironmentName> = page::cursor(&query.cursor)?;
    app.read(move |view| {
        let scan = page::scan(Key::all(), after.map(|name| key(name.as_str())));
        let (environments, last) = page::collect::<_, Environment>(view, scan, limit, |_| true)?;
        let items: Result<_, _> = environments.into_iter().map(|kept| EnvironmentView::new(view, kept, 0)).collect();
        Ok(Json(Page { items: items?, next: last.map(|last| last.name.to_string()), as_of: view.applied() }))
    })
    .await
}

/// Shows an environment.
#[utoipa::path(
    get, path = "/v1/environments/{name}", tag = "environments",
    params(("name" = String, Path)),
    responses((status = OK, body = EnvironmentView)),
)]
pub async fn get(State(app): State<App>, At(name): At<EnvironmentName>) -> Result<Answer<EnvironmentView>, Problem> {
    shown(&app, name).await
}

async fn shown(app: &App, name: EnvironmentName) -> Result<Answer<EnvironmentView>, Problem> {
    app.read(move |view| {
        let environment: Environment = existing(view, &key(name.as_str()), || Subject::Environment(name.clone()))?;
        let revision = environment.revision;
        Ok(Answer::read(view, EnvironmentView::new(view, environment, NAMED_MAX)?, Some(revision)))
    })
    .await
}

/// Lists the deployments of an environment, by pipeline: stable release, open rollout, history and quarantined releases.
#[utoipa::path(
    get, path = "/v1/environments/{name}/deployments", tag = "environments",
    params(("name" = String, Path), Listing),
    responses((status = OK, body = Page<DeploymentView>)),
)]
pub async fn deployments(
    State(app): State<App>,
    At(name): At<EnvironmentName>,
    Params(query): Params<Listing>,
) -> Result<Json<Page<DeploymentView>>, Problem> {
    let limit = page::limit(query.limit)?;
    let after: Option<PipelineName> = page::cursor(&query.cursor)?;
    app.read(move |view| {
        let _: Environment = existing(view, &key(name.as_str()), || Subject::Environment(name.clone()))?;
        let scan = page::scan(key(name.as_str()), after.map(|pipeline| deployment_key(&name, &pipeline)));
        let (deployments, last) = page::collect::<_, Deployment>(view, scan, limit, |_| true)?;
        let items = deployments.into_iter().map(DeploymentView::from).collect();
        Ok(Json(Page { items, next: last.map(|last| last.pipeline.to_string()), as_of: view.applied() }))
    })
    .await
}

/// An environment to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateEnvironment {
    /// Name of the environment.
    #[schema(value_type = String)]
    name: EnvironmentName,
    /// Labels that its targets have. Without any, it has every target.
    #[serde(default)]
    selector: BTreeMap<String, String>,
    /// Least bake time of every wave but the last, such as `5m`.
    #[schema(value_type = Option<String>)]
    least_bake: Option<Millis>,
    /// Largest first wave: a number of targets such as `3`, or a share such as `10%`.
    #[schema(value_type = Option<String>)]
    first_wave_max: Option<Amount>,
}

/// Creates an environment.
#[utoipa::path(
    post, path = "/v1/environments", tag = "environments",
    request_body = CreateEnvironment,
    responses((status = CREATED, body = EnvironmentView)),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    Body(wanted): Body<CreateEnvironment>,
) -> Result<Answer<EnvironmentView>, Problem> {
    let CreateEnvironment { name, selector, least_bake, first_wave_max } = wanted;
    let action = EnvironmentAction::Create { name: name.clone(), selector, policy: PolicyLimits { least_bake, first_wave_max } };
    let outcome = app.propose(caller, guards, action).await?;
    let location = format!("/v1/environments/{name}");
    Ok(shown(&app, name).await?.after(&outcome).created(location))
}

/// The reason for an action.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Why {
    /// Reason, recorded in the event log.
    #[serde(default)]
    pub why: String,
}

/// Forbids deploys to an environment. Rollbacks stay possible.
#[utoipa::path(
    post, path = "/v1/environments/{name}/freeze", tag = "environments",
    params(("name" = String, Path)),
    request_body = Why,
    responses((status = OK, body = EnvironmentView)),
)]
pub async fn freeze(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    At(name): At<EnvironmentName>,
    Body(Why { why }): Body<Why>,
) -> Result<Answer<EnvironmentView>, Problem> {
    let outcome = app.propose(caller, guards, EnvironmentAction::Freeze { name: name.clone(), why }).await?;
    Ok(shown(&app, name).await?.after(&outcome))
}

/// Allows deploys to a frozen environment again.
#[utoipa::path(
    post, path = "/v1/environments/{name}/unfreeze", tag = "environments",
    params(("name" = String, Path)),
    responses((status = OK, body = EnvironmentView)),
)]
pub async fn unfreeze(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    At(name): At<EnvironmentName>,
) -> Result<Answer<EnvironmentView>, Problem> {
    let outcome = app.propose(caller, guards, EnvironmentAction::Unfreeze { name: name.clone() }).await?;
    Ok(shown(&app, name).await?.after(&outcome))
}

/// Allows a quarantined release to be deployed to the environment again.
#[utoipa::path(
    post, path = "/v1/environments/{name}/quarantine/{release}/clear", tag = "environments",
    params(("name" = String, Path), ("release" = String, Path)),
    responses((status = OK, body = EnvironmentView)),
)]
pub async fn clear_quarantine(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    At((name, release)): At<(EnvironmentName, ReleaseId)>,
) -> Result<Answer<EnvironmentView>, Problem> {
    let outcome = app.propose(caller, guards, EnvironmentAction::ClearQuarantine { name: name.clone(), release }).await?;
    Ok(shown(&app, name).await?.after(&outcome))
}
