//! `swell build`: builds a commit.

use serde_json::json;

use super::{body, choose, finish};
use crate::{
    context::Context,
    failure::{Exit, Result},
    follow::{FollowArgs, Kind},
};

/// `swell build NAME`
#[derive(Debug, clap::Args)]
pub struct BuildArgs {
    /// Which pipeline
    pub pipeline: String,
    /// A branch or tag; the default branch unless given
    #[arg(long = "ref", value_name = "REF")]
    pub git_ref: Option<String>,
    /// Exactly this commit, with all its digits
    #[arg(long, value_name = "SHA")]
    pub commit: Option<String>,
    /// Build it anew although it was built before
    #[arg(long)]
    pub again: bool,
    /// How it is followed.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Asks for the build and follows it.
pub async fn run(context: &Context, args: BuildArgs) -> Result<Exit> {
    let client = context.client()?;
    let request = body([
        ("pipeline", Some(json!(args.pipeline))),
        ("ref", args.git_ref.map(Into::into)),
        ("commit", args.commit.map(Into::into)),
        ("again", args.again.then(|| true.into())),
    ]);
    let build = match client.post(&["v1", "builds"], &request).await {
        Ok(build) => build,
        Err(failure) => return Err(choose::suggest(&client, failure, &["v1", "pipelines"], &args.pipeline).await),
    };
    finish::started(context, &client, Kind::Build, build, &args.follow).await
}
