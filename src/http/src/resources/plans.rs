//! `/v1/plans`: dry runs of rollouts and rollbacks.

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

/// A plan to compute.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePlan {
    /// Name of the pipeline.
    #[schema(value_type = String)]
    pipeline: PipelineName,
    /// Environment to plan for. May be omitted with `rollback` if the pipeline runs in only one.
    #[schema(value_type = Option<String>)]
    environment: Option<EnvironmentName>,
    /// Release to plan for. Default: the newest of the pipeline, or with `rollback` the last good one.
    #[schema(value_type = Option<String>)]
    release: Option<ReleaseId>,
    /// Plans a rollback.
    #[serde(default)]
    rollback: bool,
}

/// Computes the waves, gates, least duration and blocking reason of a rollout without starting it. Its `digest` is for `if_plan`: it
/// is valid until the plan changes, for example because another rollout starts.
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
            None => return Err(Problem::invalid("`environment` is missing", "name one; `swell env ls` lists environments")),
        };
        // The number that the rollout would get: it selects the same canary targets when it starts.
        let seed = view.get::<Cluster>(&Key::all())?.unwrap_or_default().next_rollout;
        let planned = planned(view, &environment, &release, purpose, seed)?;
        let release = releases::of(view, &release)?;
        Ok(Json(PlanView::new(view, &planned, &environment, &release, purpose)?))
    })
    .await
}
