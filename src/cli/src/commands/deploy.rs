//! `swell deploy`: deploys a release to an environment.

use serde_json::json;

use super::{body, choose, finish};
use crate::{
    context::Context,
    failure::{Exit, Result},
    follow::{FollowArgs, ResourceKind},
};

/// `swell deploy PIPELINE`
#[derive(Debug, clap::Args)]
pub struct DeployArgs {
    /// Name of the pipeline
    pub pipeline: String,
    /// Environment to deploy to [default: the only one]
    #[arg(long, short = 'e', value_name = "NAME")]
    pub env: Option<String>,
    /// Release to deploy, as shop@12 or 12 [default: the newest]
    #[arg(long, value_name = "RELEASE")]
    pub release: Option<String>,
    /// Deploy only if the plan still has this hash, printed by `swell plan`
    #[arg(long, value_name = "HASH")]
    pub if_plan: Option<String>,
    /// Reason, recorded in the event log
    #[arg(long, value_name = "TEXT")]
    pub why: Option<String>,
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Starts the rollout and follows it.
pub async fn run(context: &Context, args: DeployArgs) -> Result<Exit> {
    let client = context.client()?;
    let environment = choose::environment(context, &client, args.env).await?;
    let release = args.release.map(|text| choose::release(&args.pipeline, &text)).transpose()?;
    let request = body([
        ("pipeline", Some(json!(args.pipeline))),
        ("environment", Some(json!(environment))),
        ("release", release.map(Into::into)),
        ("if_plan", args.if_plan.map(Into::into)),
        ("why", args.why.map(Into::into)),
    ]);
    let rollout = client.post(&["v1", "rollouts"], &request).await?;
    finish::started(context, &client, ResourceKind::Rollout, rollout, &args.follow).await
}
