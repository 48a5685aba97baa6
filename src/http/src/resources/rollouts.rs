//! `/v1/rollouts`: deploys of releases to environments.

use axum::{Json, extract::State};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{environments::Why, releases};
use crate::{
    access::Caller,
    app::{Answer, App, existing},
    input::{At, Body, Guards, Params},
    page::{self, Page},
    problem::Problem,
    views::rollout::RolloutView,
};
use swell_model::{
    command::{Outcome, RolloutAction},
    digest::Digest,
    event::Subject,
    ids::{EnvironmentName, PipelineName, ReleaseId, RolloutId},
    rollout::{OpenRollout, Purpose, Rollout, RolloutState},
    tables::{ReadTables, Scan, TablesError, key},
};
use swell_raft::View;

/// Filters of a list of rollouts.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RolloutFilter {
    /// Returns only rollouts of this pipeline.
    #[param(value_type = Option<String>)]
    pipeline: Option<PipelineName>,
    /// Returns only rollouts in this environment.
    #[param(value_type = Option<String>)]
    environment: Option<EnvironmentName>,
    /// Returns only rollouts in this state, such as `deployed`; or `open` or `ended` ones.
    state: Option<String>,
    /// `next` of the previous page.
    cursor: Option<String>,
    /// Number of items, 1 to 500. Default: 50.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
}

/// Lists rollouts, newest first, without waves and failures.
#[utoipa::path(
    get, path = "/v1/rollouts", tag = "rollouts",
    params(RolloutFilter),
    responses((status = OK, body = Page<RolloutView>)),
)]
pub async fn list(State(app): State<App>, Params(query): Params<RolloutFilter>) -> Result<Json<Page<RolloutView>>, Problem> {
    let limit = page::limit(query.limit)?;
    let before: Option<RolloutId> = page::cursor(&query.cursor)?;
    let states = query
        .state
        .as_deref()
        .map(|name| page::states(name, "rollouts", &RolloutState::ALL, RolloutState::name, RolloutState::is_end))
        .transpose()?;
    app.read(move |view| {
        let wanted = |rollout: &Rollout| {
            query.pipeline.as_ref().is_none_or(|pipeline| rollout.pipeline == *pipeline)
                && query.environment.as_ref().is_none_or(|environment| rollout.environment == *environment)
                && states.as_ref().is_none_or(|states| states.contains(&rollout.state))
        };
        let scan = Scan { after: before.map(|id| key(id.0)), ..Scan::all().backwards() };
        let only_open = states.as_ref().is_some_and(|states| states.iter().all(|state| !state.is_end()));
        let (rollouts, last) = if only_open {
            let open = |open: &OpenRollout| -> Result<Option<Rollout>, TablesError> {
                Ok(view.get::<Rollout>(&key(open.rollout.0))?.filter(&wanted))
            };
            let (rollouts, last) = page::collect_indexed(view, scan, limit, open)?;
            (rollouts, last.map(|open: OpenRollout| open.rollout))
        } else {
            let (rollouts, last) = page::collect(view, scan, limit, wanted)?;
            (rollouts, last.map(|rollout: Rollout| rollout.id))
        };
        let items: Result<_, _> = rollouts.iter().map(|rollout| RolloutView::brief(view, rollout)).collect();
        Ok(Json(Page { items: items?, next: last.map(|last| last.to_string()), as_of: view.applied() }))
    })
    .await
}

/// Shows a rollout with its waves, gate, reason for waiting, verdicts and failures.
#[utoipa::path(
    get, path = "/v1/rollouts/{id}", tag = "rollouts",
    params(("id" = String, Path)),
    responses((status = OK, body = RolloutView)),
)]
pub async fn get(State(app): State<App>, At(id): At<RolloutId>) -> Result<Answer<RolloutView>, Problem> {
    shown(&app, id).await
}

/// The rollout `id`, or the problem that it does not exist.
pub fn of(view: &View, id: RolloutId) -> Result<Rollout, Problem> {
    existing(view, &key(id.0), || Subject::Rollout(id))
}

async fn shown(app: &App, id: RolloutId) -> Result<Answer<RolloutView>, Problem> {
    app.read(move |view| {
        let rollout = of(view, id)?;
        Ok(Answer::read(view, RolloutView::full(view, &rollout)?, Some(rollout.revision)))
    })
    .await
}

/// A rollout to start.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRollout {
    /// Name of the pipeline.
    #[schema(value_type = String)]
    pipeline: PipelineName,
    /// Environment to deploy to.
    #[schema(value_type = String)]
    environment: EnvironmentName,
    /// Release to deploy. Default: the newest of the pipeline.
    #[schema(value_type = Option<String>)]
    release: Option<ReleaseId>,
    /// `digest` of a plan: fails if the plan has changed since.
    #[schema(value_type = Option<String>)]
    if_plan: Option<Digest>,
    /// Reason, recorded in the event log.
    why: Option<String>,
}

/// Starts a rollout of a release to an environment.
#[utoipa::path(
    post, path = "/v1/rollouts", tag = "rollouts",
    request_body = CreateRollout,
    responses((status = CREATED, body = RolloutView)),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    Body(wanted): Body<CreateRollout>,
) -> Result<Answer<RolloutView>, Problem> {
    if let Some(outcome) = app.remembered(&guards).await? {
        return started(&app, &outcome).await;
    }
    let CreateRollout { pipeline, environment, release, if_plan, why } = wanted;
    let release = app.read_latest(move |view| releases::chosen(view, &pipeline, release)).await?;
    let action = RolloutAction::Start { environment, release, purpose: Purpose::Deploy, why, if_plan };
    start(&app, caller, guards, action).await
}

/// Starts a rollout and returns it.
pub async fn start(app: &App, caller: Caller, guards: Guards, action: RolloutAction) -> Result<Answer<RolloutView>, Problem> {
    let outcome = app.propose(caller, guards, action).await?;
    started(app, &outcome).await
}

/// Returns the rollout that an outcome started.
pub async fn started(app: &App, outcome: &Outcome) -> Result<Answer<RolloutView>, Problem> {
    let id = rollout_id(outcome)?;
    Ok(shown(app, id).await?.after(outcome).created(format!("/v1/rollouts/{id}")))
}

fn rollout_id(outcome: &Outcome) -> Result<RolloutId, Problem> {
    match &outcome.subject {
        Subject::Rollout(id) => Ok(*id),
        other => Err(Problem::internal(format_args!("a rollout's command was about {other}"))),
    }
}

async fn act(
    app: &App,
    caller: Caller,
    guards: Guards,
    id: RolloutId,
    action: RolloutAction,
) -> Result<Answer<RolloutView>, Problem> {
    let outcome = app.propose(caller, guards, action).await?;
    Ok(shown(app, id).await?.after(&outcome))
}

/// Pauses a rollout before its next change.
#[utoipa::path(
    post, path = "/v1/rollouts/{id}/pause", tag = "rollouts",
    params(("id" = String, Path)),
    request_body = Why,
    responses((status = OK, body = RolloutView)),
)]
pub async fn pause(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    At(id): At<RolloutId>,
    Body(Why { why }): Body<Why>,
) -> Result<Answer<RolloutView>, Problem> {
    act(&app, caller, guards, id, RolloutAction::Pause { rollout: id, why }).await
}

/// Resumes a paused rollout.
#[utoipa::path(
    post, path = "/v1/rollouts/{id}/resume", tag = "rollouts",
    params(("id" = String, Path)),
    responses((status = OK, body = RolloutView)),
)]
pub async fn resume(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    At(id): At<RolloutId>,
) -> Result<Answer<RolloutView>, Problem> {
    act(&app, caller, guards, id, RolloutAction::Resume { rollout: id }).await
}

/// Aborts a rollout and reverts what it changed.
#[utoipa::path(
    post, path = "/v1/rollouts/{id}/abort", tag = "rollouts",
    params(("id" = String, Path)),
    request_body = Why,
    responses((status = OK, body = RolloutView)),
)]
pub async fn abort(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    At(id): At<RolloutId>,
    Body(Why { why }): Body<Why>,
) -> Result<Answer<RolloutView>, Problem> {
    act(&app, caller, guards, id, RolloutAction::Abort { rollout: id, why }).await
}

/// Passes the current gate without waiting for its verdict.
#[utoipa::path(
    post, path = "/v1/rollouts/{id}/promote", tag = "rollouts",
    params(("id" = String, Path)),
    request_body = Why,
    responses((status = OK, body = RolloutView)),
)]
pub async fn promote(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    At(id): At<RolloutId>,
    Body(Why { why }): Body<Why>,
) -> Result<Answer<RolloutView>, Problem> {
    act(&app, caller, guards, id, RolloutAction::Promote { rollout: id, why }).await
}
