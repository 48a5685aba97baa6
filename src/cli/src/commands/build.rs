//! `swell build`: builds a commit.

use serde_json::json;

use super::{body, finish};
use crate::{
    context::Context,
    failure::{Exit, Result},
    follow::{FollowArgs, ResourceKind},
};

/// `swell build NAME`
#[derive(Debug, clap::Args)]
pub struct BuildArgs {
    /// Name of the pipeline
    pub pipeline: String,
    /// Branch or tag to build [default: the default branch]
    #[arg(long = "ref", value_name = "REF")]
    pub git_ref: Option<String>,
    /// Commit to build, in full
    #[arg(long, value_name = "SHA")]
    pub commit: Option<String>,
    /// Build the commit again even if it has a build
    #[arg(long)]
    pub again: bool,
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Requests the build and follows it.
pub async fn run(context: &Context, args: BuildArgs) -> Result<Exit> {
    let client = context.client()?;
    let request = body([
        ("pipeline", Some(json!(args.pipeline))),
        ("ref", args.git_ref.map(Into::into)),
        ("commit", args.commit.map(Into::into)),
        ("again", args.again.then(|| true.into())),
    ]);
    let build = client.post(&["v1", "builds"], &request).await?;
    finish::started(context, &client, ResourceKind::Build, build, &args.follow).await
}
