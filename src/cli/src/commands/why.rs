//! `swell why`: explains the state of a build or rollout.

use super::events;
use crate::{
    context::Context,
    failure::{Exit, Result},
    follow::{FollowedResource, ResourceKind, evidence},
    views::{self, Why},
};

/// `swell why ID`
#[derive(Debug, clap::Args)]
pub struct WhyArgs {
    /// Id of the build or rollout, such as b42 or r7
    pub id: String,
}

/// Runs `swell why`.
pub async fn run(context: &Context, args: WhyArgs) -> Result<Exit> {
    ResourceKind::named(&args.id)?;
    let value = context.client()?.get(&["v1", "why", &args.id], &[]).await?;
    let why: Why = views::read(&value)?;
    context.output.result(&value, || text(context, why))?;
    Ok(Exit::Done)
}

fn text(context: &Context, why: Why) -> String {
    let mut out = format!("{}\n", why.summary);
    if let Some(hint) = why.hint.filter(|hint| !hint.is_empty()) {
        out += &format!("hint: {hint}\n");
    }
    let resource = why
        .build
        .map(|build| FollowedResource::Build(Box::new(build)))
        .or(why.rollout.map(|rollout| FollowedResource::Rollout(Box::new(rollout))));
    if let Some(resource) = &resource {
        if let FollowedResource::Rollout(rollout) = resource {
            for record in &rollout.verdicts {
                out += &format!("wave {} {}: {}: {}\n", record.wave, record.gate, record.verdict, record.evidence);
            }
        }
        if let Some(evidence) = evidence(resource) {
            out += &format!("\n{evidence}");
        }
    }
    if !why.events.is_empty() {
        out += "\n";
    }
    for event in &why.events {
        out += &events::line(context, event);
    }
    out
}
