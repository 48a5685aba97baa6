//! `swell history`: builds and rollouts, newest first.

use serde_json::{Value, json};

use super::or_dash;
use crate::{
    client::Client,
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
    /// List only builds and rollouts of this pipeline
    pub pipeline: Option<String>,
    /// List only rollouts in this environment
    #[arg(long, short = 'e', value_name = "NAME")]
    pub env: Option<String>,
    /// Number of entries to list
    #[arg(long, short = 'n', default_value_t = 30, value_name = "N")]
    pub limit: usize,
}

/// Runs `swell history`.
pub async fn run(context: &Context, args: HistoryArgs) -> Result<Exit> {
    let client = context.client()?;
    let mut query: Vec<(&str, String)> = args.pipeline.clone().map(|name| ("pipeline", name)).into_iter().collect();
    let builds = match args.env {
        Some(_) => Vec::new(),
        None => client.list(&["v1", "builds"], &query, args.limit).await?,
    };
    query.extend(args.env.clone().map(|name| ("environment", name)));
    let rollouts = client.list(&["v1", "rollouts"], &query, args.limit).await?;
    let mut items: Vec<(u64, &str, &Value)> = Vec::new();
    items.extend(builds.iter().map(|value| (created_at(value), "build", value)));
    items.extend(rollouts.iter().map(|value| (created_at(value), "rollout", value)));
    items.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
    items.truncate(args.limit);
    if items.is_empty() {
        // An empty list of something that does not exist is an error; what was removed may still have a history.
        must_exist(&client, "pipelines", args.pipeline).await?;
        must_exist(&client, "environments", args.env).await?;
    }
    let rows = items.iter().map(|(_, kind, value)| row(kind, value, context.now_ms())).collect::<Result<Vec<_>>>()?;
    let value =
        json!({ "items": items.iter().map(|(_, kind, value)| json!({ "kind": kind, *kind: value })).collect::<Vec<_>>() });
    let header = ["ID", "AGE", "ACTION", "STATE", "RELEASE", "REF/ENV", "BY"];
    context.output.result(&value, || table(header, rows, "no builds or rollouts; push, or run `swell build PIPELINE`"))?;
    Ok(Exit::Done)
}

async fn must_exist(client: &Client, collection: &str, name: Option<String>) -> Result<()> {
    match name {
        Some(name) => client.get(&["v1", collection, &name], &[]).await.map(drop),
        None => Ok(()),
    }
}

fn created_at(value: &Value) -> u64 {
    value.get("created_at").and_then(Value::as_u64).unwrap_or_default()
}

fn row(kind: &str, value: &Value, now: u64) -> Result<[String; 7]> {
    if kind == "build" {
        let build: Build = views::read(value)?;
        let what = format!("build {} {}", build.pipeline, human::short(&build.commit));
        let place = short_ref(&build.git_ref).to_owned();
        return Ok([
            build.id,
            human::ago(build.created_at, now),
            what,
            build.state.to_string(),
            or_dash(build.release),
            place,
            build.by,
        ]);
    }
    let rollout: Rollout = views::read(value)?;
    let what = format!("{} {}", rollout.purpose, rollout.pipeline);
    let age = human::ago(rollout.created_at, now);
    Ok([rollout.id, age, what, rollout.state.to_string(), rollout.release, rollout.environment, rollout.by])
}
