//! `/v1/rollbacks`: returns to an earlier release. The name of the pipeline is enough where it identifies the environment.

use axum::extract::State;
use hyper::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{releases, rollouts};
use crate::{
    access::Caller,
    app::{Answer, App, existing},
    input::{Body, Guards},
    problem::Problem,
    views::rollout::RolloutView,
};
use swell_model::{
    command::RolloutAction,
    event::Subject,
    ids::{EnvironmentName, PipelineName, ReleaseId},
    pipeline::Pipeline,
    rejection::Rejection,
    rollout::{Deployment, Purpose, Rollout, deployment_key},
    tables::{ReadTables, SCAN_RECORDS_MAX, Scan, key},
};
use swell_raft::View;

/// A rollback to start.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRollback {
    /// Name of the pipeline.
    #[schema(value_type = String)]
    pipeline: PipelineName,
    /// Environment to roll back. Default: the only one that the pipeline runs in.
    #[schema(value_type = Option<String>)]
    environment: Option<EnvironmentName>,
    /// Release to return to. Default: the last good one before the current.
    #[schema(value_type = Option<String>)]
    to: Option<ReleaseId>,
    /// Reason, recorded in the event log.
    why: Option<String>,
}

/// Starts a rollback to an earlier release. It skips bakes, ignores freezes and replaces a rollout in progress.
#[utoipa::path(
    post, path = "/v1/rollbacks", tag = "rollouts",
    request_body = CreateRollback,
    responses((status = CREATED, body = RolloutView)),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    Body(wanted): Body<CreateRollback>,
) -> Result<Answer<RolloutView>, Problem> {
    if let Some(outcome) = app.remembered(&guards).await? {
        return rollouts::started(&app, &outcome).await;
    }
    let CreateRollback { pipeline, environment, to, why } = wanted;
    let (environment, release) = app.read_latest(move |view| goal(view, &pipeline, environment, to)).await?;
    let action = RolloutAction::Start { environment, release, purpose: Purpose::Rollback, why, if_plan: None };
    rollouts::start(&app, caller, guards, action).await
}

/// The environment of a rollback and the release that it returns to.
pub fn goal(
    view: &View,
    pipeline: &PipelineName,
    environment: Option<EnvironmentName>,
    to: Option<ReleaseId>,
) -> Result<(EnvironmentName, ReleaseId), Problem> {
    let _: Pipeline = existing(view, &key(pipeline.as_str()), || Subject::Pipeline(pipeline.clone()))?;
    let deployment = match environment {
        Some(environment) => {
            let subject = || Subject::Environment(environment.clone());
            existing(view, &deployment_key(&environment, pipeline), subject)
                .map_err(|_| not_deployed(format!("{pipeline} was never deployed in {environment}")))?
        }
        None => only_deployment(view, pipeline)?,
    };
    let release = match to {
        Some(to) => releases::chosen(view, pipeline, Some(to))?,
        None => {
            let at_work: Option<Rollout> = deployment.rollout.map(|id| view.get(&key(id.0))).transpose()?.flatten();
            let present = at_work.as_ref().map(|rollout| &rollout.release).or(deployment.stable.as_ref());
            let former = deployment.former(present).cloned();
            former.ok_or_else(|| Rejection::NoFormerRelease(Subject::Environment(deployment.environment.clone())))?
        }
    };
    Ok((deployment.environment, release))
}

fn only_deployment(view: &View, pipeline: &PipelineName) -> Result<Deployment, Problem> {
    let mut deployments: Vec<Deployment> = view.scan(&Scan::all(), SCAN_RECORDS_MAX)?;
    deployments.retain(|deployment| deployment.pipeline == *pipeline);
    let names: Vec<String> = deployments.iter().map(|deployment| deployment.environment.to_string()).collect();
    match (deployments.pop(), names.len()) {
        (Some(only), 1) => Ok(only),
        (Some(_), _) => {
            let detail = format!("{pipeline} runs in {} environments: {}", names.len(), names.join(", "));
            let hint = format!("name one: --env {}", names[0]);
            Err(Problem::new(StatusCode::CONFLICT, "ambiguous", detail, hint).choices(names))
        }
        (None, _) => Err(not_deployed(format!("{pipeline} was never deployed"))),
    }
}

fn not_deployed(detail: String) -> Problem {
    Problem::new(StatusCode::CONFLICT, "not_deployed", detail, "`swell status` shows what runs where")
}
