//! `swell promote | pause | resume | abort | retry`: actions on an existing build or rollout.

use serde_json::{Value, json};

use super::finish;
use crate::{
    context::Context,
    failure::{Exit, Failure, Result},
    follow::{FollowArgs, FollowedResource, ResourceKind},
};

/// `swell promote ID`
#[derive(Debug, clap::Args)]
pub struct PromoteArgs {
    /// Id of the rollout, such as r7
    pub id: String,
    /// Reason, recorded in the event log
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,
}

/// `swell pause ID`
#[derive(Debug, clap::Args)]
pub struct PauseArgs {
    /// Id of the rollout, such as r7
    pub id: String,
    /// Reason, recorded in the event log
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,
}

/// `swell resume ID`
#[derive(Debug, clap::Args)]
pub struct ResumeArgs {
    /// Id of the rollout, such as r7
    pub id: String,
}

/// `swell abort ID`
#[derive(Debug, clap::Args)]
pub struct AbortArgs {
    /// Id of the build or rollout, such as b42 or r7
    pub id: String,
    /// Reason, recorded in the event log
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,
}

/// `swell retry BUILD`
#[derive(Debug, clap::Args)]
pub struct RetryArgs {
    /// Id of the build, such as b42
    pub build: String,
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// `swell promote`: skips the waiting time of the current gate.
pub async fn promote(context: &Context, args: PromoteArgs) -> Result<Exit> {
    rollout(context, &args.id, "promote", json!({ "why": args.why })).await
}

/// `swell pause`: pauses a rollout.
pub async fn pause(context: &Context, args: PauseArgs) -> Result<Exit> {
    rollout(context, &args.id, "pause", json!({ "why": args.why })).await
}

/// `swell resume`: resumes a paused rollout.
pub async fn resume(context: &Context, args: ResumeArgs) -> Result<Exit> {
    rollout(context, &args.id, "resume", json!({})).await
}

/// `swell abort`: cancels a build, or stops a rollout and reverts what it changed.
pub async fn abort(context: &Context, args: AbortArgs) -> Result<Exit> {
    match ResourceKind::named(&args.id)? {
        ResourceKind::Build => done(context, ResourceKind::Build, &args.id, "cancel", json!({})).await,
        ResourceKind::Rollout => done(context, ResourceKind::Rollout, &args.id, "abort", json!({ "why": args.why })).await,
    }
}

/// `swell retry`: queues a failed build again and follows it.
pub async fn retry(context: &Context, args: RetryArgs) -> Result<Exit> {
    if ResourceKind::named(&args.build)? != ResourceKind::Build {
        return Err(Failure::usage(format!("{} is a rollout; only builds can be retried", args.build))
            .hint("start another rollout with `swell deploy`"));
    }
    let client = context.client()?;
    let build = client.post(&["v1", "builds", &args.build, "retry"], &json!({})).await?;
    finish::started(context, &client, ResourceKind::Build, build, &args.follow).await
}

async fn rollout(context: &Context, id: &str, action: &str, body: Value) -> Result<Exit> {
    if ResourceKind::named(id)? != ResourceKind::Rollout {
        return Err(Failure::usage(format!("failed to {action} {id}: it is a build; only a rollout can be {action}d"))
            .hint("`swell history` lists rollouts"));
    }
    done(context, ResourceKind::Rollout, id, action, body).await
}

async fn done(context: &Context, kind: ResourceKind, id: &str, action: &str, body: Value) -> Result<Exit> {
    let value = context.client()?.post(&["v1", kind.collection(), id, action], &body).await?;
    let resource = FollowedResource::read(kind, &value)?;
    context.output.result(&value, || {
        let waiting = resource.waiting().map(|waiting| format!("; {waiting}")).unwrap_or_default();
        format!("{}{waiting}\n", resource.sentence())
    })?;
    Ok(Exit::Done)
}
