//! `swell rollback`: returns an environment to an earlier release, and says which before it starts.

use serde_json::json;

use super::{body, choose, finish};
use crate::{
    context::Context,
    failure::{Exit, Result},
    follow::{FollowArgs, ResourceKind},
    views::{self, Plan},
};

/// `swell rollback PIPELINE`
#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    /// Name of the pipeline
    pub pipeline: String,
    /// Environment to roll back [default: the only one that the pipeline runs in]
    #[arg(long, short = 'e', value_name = "NAME")]
    pub env: Option<String>,
    /// Release to return to, as shop@11 or 11 [default: the last good one]
    #[arg(long, value_name = "RELEASE")]
    pub to: Option<String>,
    /// Reason, recorded in the event log
    #[arg(long, value_name = "TEXT")]
    pub why: Option<String>,
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
    let from = plan.stable.as_ref().map(|stable| format!(" from {stable}")).unwrap_or_default();
    context.output.progress(format!("rolling back {environment}{from} to {}", plan.release));
    let request = body([
        ("pipeline", Some(json!(pipeline))),
        ("environment", Some(json!(environment))),
        ("to", Some(json!(plan.release))),
        ("why", args.why.map(Into::into)),
    ]);
    let rollout = client.post(&["v1", "rollbacks"], &request).await?;
    finish::started(context, &client, ResourceKind::Rollout, rollout, &args.follow).await
}
