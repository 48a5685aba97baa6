//! `swell history`: builds and rollouts, newest first.

use serde_json::{Value, json};

use super::or_dash;
use crate::{
    context::Context,
    failure::{Exit, Result},
    follow::short_ref,
    human,
    output::table,
    views::{self, Build, Rollout},
};

/// `swell history [PIPELINE]`
#[derive(Debug, clap::Args)]
pub struct HistoryArgs {
    /// Only of this pipeline
    pub pipeline: Option<String>,
    /// Only rollouts in this environment
    #[arg(long, short = 'e', value_name = "NAME")]
    pub env: Option<String>,
    /// How many
    #[arg(long, short = 'n', default_value_t = 30, value_name = "N")]
    pub limit: usize,
}

/// Lists them.
pub async fn run(context: &Context, args: HistoryArgs) -> Result<Exit> {
    let client = context.client()?;
    let mut query: Vec<(&str, String)> = args.pipeline.map(|name| ("pipeline", name)).into_iter().collect();
    let builds = match args.env {
        Some(_) => Vec::new(),
        None => client.list(&["v1", "builds"], &query, args.limit).await?,
    };
    query.extend(args.env.map(|name| ("environment", name)));
    let rollouts = client.list(&["v1", "rollouts"], &query, args.limit).await?;
    let mut items: Vec<(u64, &str, &Value)> = Vec::new();
    items.extend(builds.iter().map(|value| (created_at(value), "build", value)));
    items.extend(rollouts.iter().map(|value| (created_at(value), "rollout", value)));
    items.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
    items.truncate(args.limit);
    let rows = items.iter().map(|(_, kind, value)| row(kind, value, context.now_ms())).collect::<Result<Vec<_>>>()?;
    let value =
        json!({ "items": items.iter().map(|(_, kind, value)| json!({ "kind": kind, *kind: value })).collect::<Vec<_>>() });
    let header = ["ID", "WHEN", "WHAT", "STATE", "RELEASE", "WHERE", "BY"];
    context.output.result(&value, || table(header, rows, "nothing happened yet: `swell build PIPELINE`, or push"))?;
    Ok(Exit::Done)
}

fn created_at(value: &Value) -> u64 {
    value.get("created_at").and_then(Value::as_u64).unwrap_or_default()
}

fn row(kind: &str, value: &Value, now: u64) -> Result<[String; 7]> {
    if kind == "build" {
        let build: Build = views::read(value)?;
        let what = format!("build {} {}", build.pipeline, human::short(&build.commit));
        let place = short_ref(&build.git_ref).to_owned();
        return Ok([build.id, human::ago(build.created_at, now), what, build.state, or_dash(build.release), place, build.by]);
    }
    let rollout: Rollout = views::read(value)?;
    let what = format!("{} {}", rollout.purpose, rollout.pipeline);
    Ok([rollout.id, human::ago(rollout.created_at, now), what, rollout.state, rollout.release, rollout.environment, rollout.by])
}
