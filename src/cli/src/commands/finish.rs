//! How commands that start work end: they leave at once, or follow it, and print what became of it. Knows nothing of what was started.

use serde_json::Value;

use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Result},
    follow::{FollowArgs, Kind, Thing, follow},
};

/// Follows what was started, or leaves it, and prints it.
pub async fn started(context: &Context, client: &Client, kind: Kind, value: Value, args: &FollowArgs) -> Result<Exit> {
    if args.detach {
        let thing = Thing::read(kind, &value)?;
        context.output.result(&value, || thing.sentence() + "\n")?;
        context.output.say(thing.how_to_go_on());
        return Ok(Exit::Done);
    }
    let followed = follow(context, client, kind, value, args.timeout, false).await?;
    context.output.result(&followed.value, || followed.thing.sentence() + "\n")?;
    Ok(followed.exit)
}
