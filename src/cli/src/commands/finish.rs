//! The end of commands that start a build or rollout: follow it, or detach, and print the result.

use serde_json::Value;

use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Result},
    follow::{FollowArgs, FollowedResource, ResourceKind, follow},
};

/// Follows the resource, or detaches from it, and prints it.
pub async fn started(context: &Context, client: &Client, kind: ResourceKind, value: Value, args: &FollowArgs) -> Result<Exit> {
    if args.detach {
        let resource = FollowedResource::read(kind, &value)?;
        context.output.result(&value, || resource.sentence() + "\n")?;
        context.output.progress(resource.how_to_resume());
        return Ok(Exit::Done);
    }
    let followed = follow(context, client, kind, value, args.timeout, false).await?;
    context.output.result(&followed.value, || followed.resource.sentence() + "\n")?;
    Ok(followed.exit)
}
