//! `swell promote | pause | resume | abort | retry`: what can be done to a build or a rollout that is there.

use serde_json::{Value, json};

use super::finish;
use crate::{
    context::Context,
    failure::{Exit, Failure, Result},
    follow::{FollowArgs, Kind, Thing},
};

/// `swell promote ID`
#[derive(Debug, clap::Args)]
pub struct PromoteArgs {
    /// Which rollout, such as r7
    pub id: String,
    /// Why its gate may be passed, for the event log
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,
}

/// `swell pause ID`
#[derive(Debug, clap::Args)]
pub struct PauseArgs {
    /// Which rollout, such as r7
    pub id: String,
    /// Why, for the event log
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,
}

/// `swell resume ID`
#[derive(Debug, clap::Args)]
pub struct ResumeArgs {
    /// Which rollout, such as r7
    pub id: String,
}

/// `swell abort ID`
#[derive(Debug, clap::Args)]
pub struct AbortArgs {
    /// Which build or rollout, such as b42 or r7
    pub id: String,
    /// Why, for the event log
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,
}

/// `swell retry BUILD`
#[derive(Debug, clap::Args)]
pub struct RetryArgs {
    /// Which build, such as b42
    pub build: String,
    /// How it is followed.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Passes the gate at which a rollout stands.
pub async fn promote(context: &Context, args: PromoteArgs) -> Result<Exit> {
    rollout(context, &args.id, "promote", json!({ "why": args.why })).await
}

/// Lets a rollout stand still.
pub async fn pause(context: &Context, args: PauseArgs) -> Result<Exit> {
    rollout(context, &args.id, "pause", json!({ "why": args.why })).await
}

/// Lets a paused rollout go on.
pub async fn resume(context: &Context, args: ResumeArgs) -> Result<Exit> {
    rollout(context, &args.id, "resume", json!({})).await
}

/// Stops a build or a rollout.
pub async fn abort(context: &Context, args: AbortArgs) -> Result<Exit> {
    match Kind::named(&args.id)? {
        Kind::Build => done(context, Kind::Build, &args.id, "cancel", json!({})).await,
        Kind::Rollout => done(context, Kind::Rollout, &args.id, "abort", json!({ "why": args.why })).await,
    }
}

/// Queues a failed build again and follows it.
pub async fn retry(context: &Context, args: RetryArgs) -> Result<Exit> {
    if Kind::named(&args.build)? != Kind::Build {
        return Err(Failure::usage(format!("{} is a rollout, and builds alone are retried", args.build))
            .hint("start another one: `swell deploy`"));
    }
    let client = context.client()?;
    let build = client.post(&["v1", "builds", &args.build, "retry"], &json!({})).await?;
    finish::started(context, &client, Kind::Build, build, &args.follow).await
}

async fn rollout(context: &Context, id: &str, action: &str, body: Value) -> Result<Exit> {
    if Kind::named(id)? != Kind::Rollout {
        return Err(
            Failure::usage(format!("{id} is a build, and only a rollout can {action}")).hint("`swell history` lists rollouts")
        );
    }
    done(context, Kind::Rollout, id, action, body).await
}

async fn done(context: &Context, kind: Kind, id: &str, action: &str, body: Value) -> Result<Exit> {
    let value = context.client()?.post(&["v1", kind.collection(), id, action], &body).await?;
    let thing = Thing::read(kind, &value)?;
    context.output.result(&value, || {
        let waits_for = thing.waits_for().map(|waits_for| format!("; waits for {waits_for}")).unwrap_or_default();
        format!("{}{waits_for}\n", thing.sentence())
    })?;
    Ok(Exit::Done)
}
