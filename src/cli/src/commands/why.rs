//! `swell why`: why a build or a rollout is where it is.

use super::events;
use crate::{
    context::Context,
    failure::{Exit, Result},
    follow::{Kind, Thing, evidence},
    views::{self, Why},
};

/// `swell why ID`
#[derive(Debug, clap::Args)]
pub struct WhyArgs {
    /// Which build or rollout, such as b42 or r7
    pub id: String,
}

/// Asks for the evidence and prints it.
pub async fn run(context: &Context, args: WhyArgs) -> Result<Exit> {
    Kind::named(&args.id)?;
    let value = context.client()?.get(&["v1", "why", &args.id], &[]).await?;
    let why: Why = views::read(&value)?;
    context.output.result(&value, || text(context, why))?;
    Ok(Exit::Done)
}

fn text(context: &Context, why: Why) -> String {
    let mut out = format!("{}\n", why.summary);
    if let Some(hint) = why.hint.filter(|hint| !hint.is_empty()) {
        out += &format!("next: {hint}\n");
    }
    let thing =
        why.build.map(|build| Thing::Build(Box::new(build))).or(why.rollout.map(|rollout| Thing::Rollout(Box::new(rollout))));
    if let Some(thing) = &thing {
        if let Thing::Rollout(rollout) = thing {
            for verdict in &rollout.verdicts {
                out += &format!("wave {} {}: {}: {}\n", verdict.wave + 1, verdict.gate, verdict.verdict, verdict.evidence);
            }
        }
        if let Some(evidence) = evidence(thing) {
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
