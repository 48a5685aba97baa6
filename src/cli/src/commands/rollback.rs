//! `swell rollback`: goes back to an earlier release, saying which before it starts.

use serde_json::json;

use super::{body, choose, finish};
use crate::{
    context::Context,
    failure::{Exit, Result},
    follow::{FollowArgs, Kind},
    views::{self, Plan},
};

/// `swell rollback PIPELINE`
#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    /// Which pipeline
    pub pipeline: String,
    /// Where; may be left out where the pipeline runs in one environment
    #[arg(long, short = 'e', value_name = "NAME")]
    pub env: Option<String>,
    /// To which release, as shop@11 or 11; the last good one unless given
    #[arg(long, value_name = "RELEASE")]
    pub to: Option<String>,
    /// Why, for the event log
    #[arg(long, value_name = "TEXT")]
    pub why: Option<String>,
    /// How it is followed.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Starts the rollback and follows it.
pub async fn run(context: &Context, args: RollbackArgs) -> Result<Exit> {
    let client = context.client()?;
    let pipeline = args.pipeline.as_str();
    let environment = args.env.or_else(|| context.settings.value("environment").map(str::to_owned));
    let to = args.to.map(|text| choose::release(pipeline, &text)).transpose()?;
    let wanted = body([
        ("pipeline", Some(json!(pipeline))),
        ("environment", environment.map(Into::into)),
        ("release", to.map(Into::into)),
        ("rollback", Some(true.into())),
    ]);
    let plan: Plan = views::read(&choose::plan(&client, wanted).await?)?;
    let environment = &plan.environment;
    let from = plan.stable.as_ref().map(|stable| format!(", whose stable release is {stable}")).unwrap_or_default();
    context.output.say(format!("going back to {} in {environment}{from}", plan.release));
    let request = body([
        ("pipeline", Some(json!(pipeline))),
        ("environment", Some(json!(environment))),
        ("to", Some(json!(plan.release))),
        ("why", args.why.map(Into::into)),
    ]);
    let rollout = client.post(&["v1", "rollbacks"], &request).await?;
    finish::started(context, &client, Kind::Rollout, rollout, &args.follow).await
}
