//! `/v1/rollouts`: moving environments to releases.

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
    rollout::{Purpose, Rollout, RolloutState},
    tables::{Scan, key},
};
use swell_raft::View;

/// Which rollouts.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RolloutFilter {
    /// Only of this pipeline.
    #[param(value_type = Option<String>)]
    pipeline: Option<PipelineName>,
    /// Only in this environment.
    #[param(value_type = Option<String>)]
    environment: Option<EnvironmentName>,
    /// Only in this state, such as `deployed`; or `open` or `ended`.
    state: Option<String>,
    /// Where the page begins: `next` of the one before.
    cursor: Option<String>,
    /// How many items, 1 to 500; 50 unless given.
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
        let (rollouts, last) = page::collect(view, scan, limit, wanted)?;
        let items: Result<_, _> = rollouts.iter().map(|rollout| RolloutView::brief(view, rollout)).collect();
        Ok(Json(Page { items: items?, next: last.map(|last: Rollout| last.id.to_string()), as_of: view.applied() }))
    })
    .await
}

/// Shows a rollout: its waves, its gate and what it waits for, verdicts and failures.
#[utoipa::path(
    get, path = "/v1/rollouts/{id}", tag = "rollouts",
    params(("id" = String, Path)),
    responses((status = OK, body = RolloutView)),
)]
pub async fn get(State(app): State<App>, At(id): At<RolloutId>) -> Result<Answer<RolloutView>, Problem> {
    shown(&app, id).await
}

/// The rollout `id`, or the problem that there is none.
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
    /// Whose release.
    #[schema(value_type = String)]
    pipeline: PipelineName,
    /// Where.
    #[schema(value_type = String)]
    environment: EnvironmentName,
    /// To which release; the pipeline's newest unless given.
    #[schema(value_type = Option<String>)]
    release: Option<ReleaseId>,
    /// Only if the plan is still this one: `digest` of a dry run.
    #[schema(value_type = Option<String>)]
    if_plan: Option<Digest>,
    /// Why, for the event log.
    why: Option<String>,
}

/// Moves an environment to a release.
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

/// Starts a rollout and shows it.
pub async fn start(app: &App, caller: Caller, guards: Guards, action: RolloutAction) -> Result<Answer<RolloutView>, Problem> {
    let outcome = app.propose(caller, guards, action).await?;
    started(app, &outcome).await
}

/// Shows the rollout that was started.
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

/// Lets a rollout stand still.
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

/// Lets a paused rollout go on.
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

/// Stops a rollout and takes back what it changed.
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

/// Passes the present gate, whatever it would say.
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
