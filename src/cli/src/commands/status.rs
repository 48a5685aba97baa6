//! `swell status`: what runs where, or one resource; with `--watch`, until it ends.

use serde_json::{Value, json};

use super::{overview, pipeline};
use crate::{
    context::Context,
    failure::{Exit, Failure, Result},
    follow::{FollowedResource, ResourceKind, counts, evidence, follow},
    human,
    output::info,
    views,
};
use swell_model::{ids::ReleaseId, units::Millis};

/// `swell status [ID]`
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Build (b42), rollout (r7), release (shop@12) or pipeline [default: an overview]
    pub id: Option<String>,
    /// Show changes until the build or rollout ends
    #[arg(long, short)]
    pub watch: bool,
    /// Stop watching after this time, such as 10m, with exit code 6
    #[arg(long, value_name = "TIME", requires = "watch")]
    pub timeout: Option<Millis>,
}

/// Runs `swell status`.
pub async fn run(context: &Context, args: StatusArgs) -> Result<Exit> {
    let Some(id) = args.id else { return overview::run(context, args.watch, args.timeout).await };
    let client = context.client()?;
    let Some(kind) = ResourceKind::of(&id) else {
        if args.watch {
            return Err(
                Failure::usage(format!("`{id}` cannot be watched")).hint("watch a build (b42), a rollout (r7), or the overview")
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
        let result = json!({ "exit": followed.exit.code(), kind.name(): followed.value });
        if context.output.json {
            context.output.json_line("result", result)?;
        } else {
            context.output.print(&(followed.resource.sentence() + "\n"))?;
        }
        return Ok(followed.exit);
    }
    let resource = FollowedResource::read(kind, &first)?;
    context.output.result(&first, || text(context, &resource))?;
    Ok(Exit::Done)
}

/// A build or rollout as text.
pub fn text(context: &Context, resource: &FollowedResource) -> String {
    let now = context.now_ms();
    let mut out = resource.sentence() + "\n";
    match resource {
        FollowedResource::Build(build) => {
            out += &info([
                ("requested", format!("{} by {} ({})", human::ago(build.created_at, now), build.by, build.cause)),
                ("commit", build.commit.clone()),
                ("artifact", build.artifact.clone().unwrap_or_default()),
                ("waiting for", build.waits_for.clone().unwrap_or_default()),
            ]);
            for attempt in &build.attempts {
                out += &format!(
                    "attempt {} on {}: {}\n",
                    attempt.number,
                    attempt.runner,
                    attempt.end.as_deref().unwrap_or("running")
                );
                for phase in &attempt.phases {
                    let took = human::duration(phase.ended_at.unwrap_or(now).saturating_sub(phase.started_at));
                    let how = match (phase.skipped, phase.ended_at, phase.exit_code) {
                        (true, ..) => "skipped".to_owned(),
                        (_, None, _) => format!("running for {took}"),
                        (_, Some(_), Some(code)) if code != 0 => format!("exit {code} after {took}"),
                        _ => took,
                    };
                    let memory =
                        phase.memory_peak_bytes.map(|peak| format!(", peak memory {}", human::bytes(peak))).unwrap_or_default();
                    out += &format!("  {:9} {how}{memory}\n", phase.phase);
                }
                if let Some(why) = &attempt.unisolated {
                    out += &format!("  NOT ISOLATED: {why}\n");
                }
            }
        }
        FollowedResource::Rollout(rollout) => {
            out += &info([
                ("requested", format!("{} by {}", human::ago(rollout.created_at, now), rollout.by)),
                ("why", rollout.why.clone().unwrap_or_default()),
                ("stable", rollout.stable.clone().unwrap_or_default()),
                ("paused", rollout.paused.as_ref().map(|pause| format!("by {}: {}", pause.by, pause.why)).unwrap_or_default()),
                ("waiting for", rollout.waits_for.clone().unwrap_or_default()),
            ]);
            for wave in &rollout.waves {
                let at = counts(&wave.counts, wave.targets.count);
                out += &format!("  wave {}/{}  {:8} {at}\n", wave.number, rollout.waves.len(), wave.state);
            }
            for record in &rollout.verdicts {
                out += &format!("  wave {} {}: {}: {}\n", record.wave, record.gate, record.verdict, record.evidence);
            }
        }
    }
    if resource.exit().is_none_or(|exit| exit != Exit::Done) {
        out += &evidence(resource).unwrap_or_default();
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
            ("created", format!("{} by {}", human::ago(release.created_at, context.now_ms()), release.by)),
        ])
    })?;
    Ok(Exit::Done)
}
