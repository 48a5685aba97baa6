//! `swell status` without an id: what runs in each environment, open rollouts and open builds.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{choose, or_dash};
use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Result},
    human,
    output::table,
    views::{self, Build, Deployment, Rollout},
};
use swell_model::{rollout::RolloutState, units::Millis};

/// How many open builds and rollouts are shown.
const OPEN_MAX: usize = 50;

/// Shows the overview once, or with `watch` after every change.
pub async fn run(context: &Context, watch: bool, timeout: Option<Millis>) -> Result<Exit> {
    let client = context.client()?;
    let time_is_up = timeout.map(|timeout| tokio::time::Instant::now() + timeout.as_duration());
    if !watch {
        let value = overview(&client).await?;
        context.output.result(&value, || text(context, &value))?;
        return Ok(Exit::Done);
    }
    let up = async {
        match time_is_up {
            Some(time) => tokio::time::sleep_until(time).await,
            None => std::future::pending().await,
        }
    };
    let watched = watched(context, &client);
    let exit = tokio::select! {
        failed = watched => return failed.map(|never| match never {}),
        () = up => Exit::TimedOut,
        () = context.interrupt.pressed() => Exit::Done,
    };
    if context.output.json {
        context.output.json_line("result", json!({ "exit": exit.code() }))?;
    }
    Ok(exit)
}

/// Shows the overview after every change, until a request fails.
async fn watched(context: &Context, client: &Client) -> Result<std::convert::Infallible> {
    let mut shown = None;
    loop {
        let value = overview(client).await?;
        if shown.as_ref() != Some(&value) {
            match context.output.json {
                true => context.output.json_line("status", value.clone())?,
                false => context.output.print(&format!(
                    "{}\n{}",
                    human::clock(context.now_ms(), &context.zone),
                    text(context, &value)
                ))?,
            }
            shown = Some(value);
        }
        tokio::time::sleep(context.pace.poll_every * 2).await;
    }
}

/// The overview as one object.
async fn overview(client: &Client) -> Result<Value> {
    let open = [("state", "open".to_owned())];
    let rollouts = client.list(&["v1", "rollouts"], &open, OPEN_MAX).await?;
    let builds = client.list(&["v1", "builds"], &open, OPEN_MAX).await?;
    let deployments: Vec<Value> = choose::deployments(client, None).await?.into_iter().map(|(_, value)| value).collect();
    Ok(json!({ "deployments": deployments, "rollouts": rollouts, "builds": builds }))
}

fn part<T: serde::de::DeserializeOwned>(value: &Value, name: &str) -> Vec<T> {
    value.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(|item| views::read(item).ok()).collect()
}

fn text(context: &Context, value: &Value) -> String {
    let now = context.now_ms();
    let rollouts: Vec<Rollout> = part(value, "rollouts");
    let by_id: BTreeMap<&str, &Rollout> = rollouts.iter().map(|rollout| (rollout.id.as_str(), rollout)).collect();
    let row = |deployment: Deployment| {
        let open = deployment.rollout.as_deref().map(|id| match by_id.get(id) {
            Some(rollout) => {
                let is_blocked = rollout.state.get() == Some(RolloutState::Blocked);
                let waiting = rollout.waits_for.as_ref().map(|reason| match is_blocked {
                    true => format!(": {reason}"),
                    false => format!(", waiting for {reason}"),
                });
                format!("{id} {} to {}{}", rollout.state, rollout.release, waiting.unwrap_or_default())
            }
            None => id.to_owned(),
        });
        let last = deployment.history.first().map(|past| format!("{} {}", past.end, human::ago(past.at, now)));
        let quarantined: Vec<String> = deployment.quarantined.into_iter().map(|kept| kept.release).collect();
        [
            deployment.environment,
            deployment.pipeline,
            or_dash(deployment.stable),
            or_dash(open),
            or_dash(last),
            or_dash(Some(quarantined.join(" "))),
        ]
    };
    let header = ["ENVIRONMENT", "PIPELINE", "RELEASE", "ROLLOUT", "LAST ROLLOUT", "QUARANTINED"];
    let mut out = table(
        header,
        part::<Deployment>(value, "deployments").into_iter().map(row),
        "nothing is deployed; run `swell deploy PIPELINE --env ENVIRONMENT`",
    );
    let builds: Vec<Build> = part(value, "builds");
    if !builds.is_empty() {
        let row = |build: Build| {
            let age = human::ago(build.created_at, now);
            [
                build.id,
                build.pipeline,
                human::short(&build.commit).to_owned(),
                build.state.to_string(),
                or_dash(build.waits_for),
                age,
            ]
        };
        out += "\n";
        out += &table(["BUILD", "PIPELINE", "COMMIT", "STATE", "WAITING FOR", "REQUESTED"], builds.into_iter().map(row), "");
    }
    out
}
