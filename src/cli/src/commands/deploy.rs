//! `swell deploy`: moves an environment to a release.

use serde_json::json;

use super::{body, choose, finish};
use crate::{
    context::Context,
    failure::{Exit, Result},
    follow::{FollowArgs, Kind},
};

/// `swell deploy PIPELINE`
#[derive(Debug, clap::Args)]
pub struct DeployArgs {
    /// Which pipeline
    pub pipeline: String,
    /// Where; may be left out where there is one environment
    #[arg(long, short = 'e', value_name = "NAME")]
    pub env: Option<String>,
    /// Which release, as shop@12 or 12; the newest unless given
    #[arg(long, value_name = "RELEASE")]
    pub release: Option<String>,
    /// Only if the plan is still the one with this hash, as `swell plan` printed it
    #[arg(long, value_name = "HASH")]
    pub if_plan: Option<String>,
    /// Why, for the event log
    #[arg(long, value_name = "TEXT")]
    pub why: Option<String>,
    /// How it is followed.
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
    let rollout = match client.post(&["v1", "rollouts"], &request).await {
        Ok(rollout) => rollout,
        Err(failure) => return Err(choose::suggest(&client, failure, &["v1", "environments"], &environment).await),
    };
    finish::started(context, &client, Kind::Rollout, rollout, &args.follow).await
}
