//! `swell status`: what runs where, or one thing; with `--watch`, as it changes.

use serde_json::{Value, json};

use super::{overview, pipeline};
use crate::{
    context::Context,
    failure::{Exit, Failure, Result},
    follow::{Kind, Thing, counts, evidence, follow},
    human,
    output::info,
    views,
};
use swell_model::{ids::ReleaseId, units::Millis};

/// `swell status [ID]`
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// A build (b42), a rollout (r7), a release (shop@12) or a pipeline; everything unless given
    pub id: Option<String>,
    /// Go on showing it until it ended
    #[arg(long, short)]
    pub watch: bool,
    /// With --watch, stop after so long, such as 10m, with exit code 6
    #[arg(long, value_name = "TIME", requires = "watch")]
    pub timeout: Option<Millis>,
}

/// Shows it, once or as it changes.
pub async fn run(context: &Context, args: StatusArgs) -> Result<Exit> {
    let Some(id) = args.id else { return overview::run(context, args.watch, args.timeout).await };
    let client = context.client()?;
    let Some(kind) = Kind::of(&id) else {
        if args.watch {
            return Err(
                Failure::usage(format!("`{id}` cannot be watched")).hint("watch a build (b42), a rollout (r7), or everything")
            );
        }
        if id.parse::<ReleaseId>().is_ok() {
            return release(context, &id).await;
        }
        return pipeline::show(context, &id).await;
    };
    let first = client.get(&["v1", kind.collection(), &id], &[]).await?;
    if args.watch {
        let followed = follow(context, &client, kind, first, args.timeout, true).await?;
        let result = json!({ "exit": followed.exit.code(), name(kind): followed.value });
        if context.output.json {
            context.output.json_line("result", result)?;
        } else {
            context.output.print(&(followed.thing.sentence() + "\n"))?;
        }
        return Ok(followed.exit);
    }
    let thing = Thing::read(kind, &first)?;
    context.output.result(&first, || text(context, &thing))?;
    Ok(Exit::Done)
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Build => "build",
        Kind::Rollout => "rollout",
    }
}

/// A build or a rollout on a page.
pub fn text(context: &Context, thing: &Thing) -> String {
    let now = context.now_ms();
    let mut out = thing.sentence() + "\n";
    match thing {
        Thing::Build(build) => {
            out += &info([
                ("asked for", format!("{} by {} ({})", human::ago(build.created_at, now), build.by, build.cause)),
                ("commit", build.commit.clone()),
                ("artifact", build.artifact.clone().unwrap_or_default()),
                ("waits for", build.waits_for.clone().unwrap_or_default()),
            ]);
            for attempt in &build.attempts {
                out += &format!(
                    "attempt {} on {}: {}\n",
                    attempt.number,
                    attempt.runner,
                    attempt.end.as_deref().unwrap_or("at work")
                );
                for phase in &attempt.phases {
                    let took = human::duration(phase.ended_at.unwrap_or(now).saturating_sub(phase.started_at));
                    let how = match (phase.skipped, phase.ended_at, phase.exit_code) {
                        (true, ..) => "skipped".to_owned(),
                        (_, None, _) => format!("at work for {took}"),
                        (_, Some(_), Some(code)) if code != 0 => format!("exit {code} after {took}"),
                        _ => took,
                    };
                    let memory =
                        phase.memory_peak_bytes.map(|peak| format!(", {} at most", human::bytes(peak))).unwrap_or_default();
                    out += &format!("  {:9} {how}{memory}\n", phase.phase);
                }
                if let Some(why) = &attempt.unisolated {
                    out += &format!("  NOT ISOLATED: {why}\n");
                }
            }
        }
        Thing::Rollout(rollout) => {
            out += &info([
                ("asked for", format!("{} by {}", human::ago(rollout.created_at, now), rollout.by)),
                ("why", rollout.why.clone().unwrap_or_default()),
                ("stable", rollout.stable.clone().unwrap_or_default()),
                ("paused", rollout.paused.as_ref().map(|pause| format!("by {}: {}", pause.by, pause.why)).unwrap_or_default()),
                ("waits for", rollout.waits_for.clone().unwrap_or_default()),
            ]);
            for wave in &rollout.waves {
                let at = counts(&wave.counts, wave.targets.count);
                out += &format!("  wave {}/{}  {:8} {at}\n", wave.number + 1, rollout.waves.len(), wave.state);
            }
            for verdict in &rollout.verdicts {
                out += &format!("  wave {} {}: {}: {}\n", verdict.wave + 1, verdict.gate, verdict.verdict, verdict.evidence);
            }
        }
    }
    if thing.exit().is_none_or(|exit| exit != Exit::Done) {
        out += &evidence(thing).unwrap_or_default();
    }
    out
}

async fn release(context: &Context, id: &str) -> Result<Exit> {
    let value: Value = context.client()?.get(&["v1", "releases", id], &[]).await?;
    let release: views::Release = views::read(&value)?;
    context.output.result(&value, || {
        info([
            ("release", release.id),
            ("commit", format!("{} ({})", release.commit, release.git_ref)),
            ("artifact", release.artifact),
            ("build", release.build),
            ("made", format!("{} for {}", human::ago(release.created_at, context.now_ms()), release.by)),
        ])
    })?;
    Ok(Exit::Done)
}
