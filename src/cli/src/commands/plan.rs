//! `swell plan`: what a deploy would do. Exit code 10 if it would change something.

use std::fmt::Write as _;

use serde_json::json;

use super::{body, choose};
use crate::{
    context::Context,
    failure::{Exit, Result},
    human,
    views::{self, Plan},
};
use swell_model::rollout::Purpose;

/// How many targets of a wave are listed by name.
const NAMED_MAX: usize = 8;

/// `swell plan PIPELINE`
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    /// Name of the pipeline
    pub pipeline: String,
    /// Environment to plan for [default: the only one]
    #[arg(long, short = 'e', value_name = "NAME")]
    pub env: Option<String>,
    /// Release to plan for, as shop@12 or 12 [default: the newest]
    #[arg(long, value_name = "RELEASE")]
    pub release: Option<String>,
    /// Plan a rollback
    #[arg(long)]
    pub rollback: bool,
}

/// Runs `swell plan`.
pub async fn run(context: &Context, args: PlanArgs) -> Result<Exit> {
    let client = context.client()?;
    let environment = match args.rollback {
        true => args.env.or_else(|| context.settings.value("environment").map(str::to_owned)),
        false => Some(choose::environment(context, &client, args.env).await?),
    };
    let release = args.release.map(|text| choose::release(&args.pipeline, &text)).transpose()?;
    let request = body([
        ("pipeline", Some(json!(args.pipeline))),
        ("environment", environment.map(Into::into)),
        ("release", release.map(Into::into)),
        ("rollback", args.rollback.then(|| true.into())),
    ]);
    let value = choose::plan(&client, request).await?;
    let plan: Plan = views::read(&value)?;
    context.output.result(&value, || text(&plan))?;
    Ok(if plan.stable.as_ref() == Some(&plan.release) { Exit::Done } else { Exit::Changes })
}

/// The plan as text.
fn text(plan: &Plan) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut put = |line: std::fmt::Arguments<'_>| out.write_fmt(format_args!("{line}\n")).unwrap_or_default();
    let stable = plan.stable.as_deref().unwrap_or("nothing");
    if plan.stable.as_ref() == Some(&plan.release) {
        put(format_args!("{} already runs {}: a {} would restart it", plan.environment, plan.release, plan.purpose));
    } else {
        put(format_args!("{}: {stable} -> {} ({}, {})", plan.environment, plan.release, plan.purpose, plan.settings.strategy));
    }
    if let Some(blocked) = &plan.blocked {
        put(format_args!("blocked: {blocked}"));
    }
    put(format_args!("{}, {} of them connected", human::count(plan.total, "target"), plan.reachable));
    for wave in &plan.waves {
        let named: Vec<&str> = wave.targets.names.iter().take(NAMED_MAX).map(String::as_str).collect();
        let more = wave.targets.count.saturating_sub(named.len() as u64);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let region = wave.region.as_ref().map(|region| format!(" of {region}")).unwrap_or_default();
        let count = human::count(wave.targets.count, "target");
        put(format_args!("  wave {}: {count}{region}: {}{more}", wave.number, named.join(", ")));
        for gate in &wave.gates {
            put(format_args!("    then {gate}"));
        }
    }
    let settings = &plan.settings;
    put(format_args!("at most {} unavailable at once", settings.max_unavailable));
    if settings.in_place {
        put(format_args!("services start in place: each target is interrupted while it is changed"));
    }
    if settings.irreversible {
        put(format_args!("irreversible: a failing gate pauses the rollout instead of rolling back"));
    }
    let timing = &plan.timing;
    let (least, back) = (human::duration(timing.least_ms), human::duration(timing.least_rollback_ms));
    put(format_args!("takes at least {least}; a rollback at least {back}"));
    for warning in &plan.warnings {
        put(format_args!("warning: {warning}"));
    }
    if plan.purpose.get() == Some(Purpose::Deploy) {
        let (pipeline, environment) = (&plan.pipeline, &plan.environment);
        put(format_args!(
            "deploy this plan: swell deploy {pipeline} --env {environment} --release {} --if-plan {}",
            plan.release, plan.digest
        ));
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn plan_text_shows_waves_gates_limits_and_timing() {
        let plan = json!({
            "pipeline": "shop", "environment": "production", "release": "shop@12", "stable": "shop@11", "purpose": "deploy",
            "digest": "sha256:ab", "blocked": "the environment is frozen by ada: audit", "total": 6, "reachable": 5,
            "waves": [
                { "number": 1, "targets": { "count": 1, "names": ["web-3"] }, "gates": ["convergence: healthy within 1m40s", "bake: healthy for 5m"] },
                { "number": 2, "targets": { "count": 5, "names": ["web-1", "web-2"] }, "gates": ["convergence: healthy within 5m"] },
            ],
            "settings": { "strategy": "canary", "max_unavailable": 1 },
            "timing": { "least_ms": 400_000, "least_rollback_ms": 12_000 },
        });
        insta::assert_snapshot!(text(&views::read(&plan).unwrap()), @r"
        production: shop@11 -> shop@12 (deploy, canary)
        blocked: the environment is frozen by ada: audit
        6 targets, 5 of them connected
          wave 1: 1 target: web-3
            then convergence: healthy within 1m40s
            then bake: healthy for 5m
          wave 2: 5 targets: web-1, web-2 and 3 more
            then convergence: healthy within 5m
        at most 1 unavailable at once
        takes at least 6m40s; a rollback at least 12s
        deploy this plan: swell deploy shop --env production --release shop@12 --if-plan sha256:ab
        ");
    }
}
