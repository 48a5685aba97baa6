//! `/v1/plans`: what a rollout or a rollback would do. Changes nothing.

use axum::{Json, extract::State};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{releases, rollbacks};
use crate::{app::App, input::Body, problem::Problem, views::plan::PlanView};
use swell_model::{
    cluster::Cluster,
    ids::{EnvironmentName, PipelineName, ReleaseId},
    rollout::{Purpose, plan_input::planned},
    tables::{Key, ReadTables},
};

/// What to plan.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePlan {
    /// Whose release.
    #[schema(value_type = String)]
    pipeline: PipelineName,
    /// Where. With `rollback` it may be left out where the pipeline runs in one environment.
    #[schema(value_type = Option<String>)]
    environment: Option<EnvironmentName>,
    /// To which release; the pipeline's newest unless given, or with `rollback` the last good one.
    #[schema(value_type = Option<String>)]
    release: Option<ReleaseId>,
    /// Plan going back instead.
    #[serde(default)]
    rollback: bool,
}

/// Shows which targets would change together, the gates, how long it takes at least and what blocks. Its `digest` is for
/// `if_plan`: it holds until something about the plan changes, such as another rollout that starts before it.
#[utoipa::path(post, path = "/v1/plans", tag = "rollouts", request_body = CreatePlan, responses((status = OK, body = PlanView)))]
pub async fn create(State(app): State<App>, Body(wanted): Body<CreatePlan>) -> Result<Json<PlanView>, Problem> {
    let CreatePlan { pipeline, environment, release, rollback } = wanted;
    app.read_latest(move |view| {
        let (purpose, environment, release) = match environment {
            environment if rollback => {
                let (environment, release) = rollbacks::goal(view, &pipeline, environment, release)?;
                (Purpose::Rollback, environment, release)
            }
            Some(environment) => (Purpose::Deploy, environment, releases::chosen(view, &pipeline, release)?),
            None => return Err(Problem::invalid("`environment` is missing", "say where: `swell env ls` lists them")),
        };
        // The number that the rollout would have: the same targets are drawn when it starts.
        let seed = view.get::<Cluster>(&Key::all())?.unwrap_or_default().next_rollout;
        let planned = planned(view, &environment, &release, purpose, seed)?;
        let release = releases::of(view, &release)?;
        Ok(Json(PlanView::new(view, &planned, &environment, &release, purpose)?))
    })
    .await
}
