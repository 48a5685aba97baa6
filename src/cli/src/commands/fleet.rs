//! `swell fleet`: the targets that releases run on.

use serde_json::{Value, json};

use super::{LIST_MAX, labels, or_dash};
use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Result},
    follow::failed_targets,
    human,
    output::{info, table},
    views::{self, Target},
};

/// Subcommands of `swell fleet`
#[derive(Debug, clap::Subcommand)]
pub enum FleetCommand {
    /// Lists the targets of the fleet
    Ls(ListArgs),
    /// Shows a target and what runs there
    Show {
        /// Name of the target
        name: String,
    },
    /// Excludes a target from rollouts
    Cordon {
        /// Name of the target
        name: String,
        /// Reason, recorded in the event log
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        why: String,
    },
    /// Includes a cordoned target in rollouts again
    Uncordon {
        /// Name of the target
        name: String,
    },
}

/// `swell fleet ls`
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// List only targets of this environment
    #[arg(long, short = 'e', value_name = "NAME")]
    pub env: Option<String>,
    /// List only targets in this region
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
    /// List only targets in zones with this name
    #[arg(long, value_name = "NAME")]
    pub zone: Option<String>,
    /// List only connected targets, or with `false` only lost ones
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub connected: Option<bool>,
    /// Number of targets to list
    #[arg(long, short = 'n', default_value_t = LIST_MAX, value_name = "N")]
    pub limit: usize,
}

/// Runs `swell fleet`.
pub async fn run(context: &Context, command: FleetCommand) -> Result<Exit> {
    let client = context.client()?;
    match command {
        FleetCommand::Ls(args) => list(context, &client, args).await,
        FleetCommand::Show { name } => print(context, &client.get(&["v1", "targets", &name], &[]).await?),
        FleetCommand::Cordon { name, why } => {
            print(context, &client.post(&["v1", "targets", &name, "cordon"], &json!({ "why": why })).await?)
        }
        FleetCommand::Uncordon { name } => print(context, &client.post(&["v1", "targets", &name, "uncordon"], &json!({})).await?),
    }
}

async fn list(context: &Context, client: &Client, args: ListArgs) -> Result<Exit> {
    let mut query = Vec::new();
    query.extend(args.env.map(|name| ("environment", name)));
    query.extend(args.region.map(|name| ("region", name)));
    query.extend(args.zone.map(|name| ("zone", name)));
    query.extend(args.connected.map(|connected| ("connected", connected.to_string())));
    let items = client.list(&["v1", "targets"], &query, args.limit).await?;
    let targets: Vec<Target> = views::read_all(&items)?;
    let row = |target: Target| {
        let state = state(context, &target);
        let place = format!("{}/{}", target.region, target.zone);
        [target.name, place, state, labels(&target.labels), target.address, target.agent_version]
    };
    let header = ["TARGET", "REGION/ZONE", "STATE", "LABELS", "ADDRESS", "AGENT"];
    context.output.result(&json!({ "items": items }), || {
        table(header, targets.into_iter().map(row), "no targets; run `swell agent` on a machine to add it")
    })?;
    Ok(Exit::Done)
}

fn state(context: &Context, target: &Target) -> String {
    let state = context.output.state(if target.connected { "connected" } else { "lost" });
    if target.cordoned.is_some() { format!("{state}, cordoned") } else { state }
}

fn print(context: &Context, value: &Value) -> Result<Exit> {
    let target: Target = views::read(value)?;
    context.output.result(value, || text(context, &target))?;
    Ok(Exit::Done)
}

fn text(context: &Context, target: &Target) -> String {
    let now = context.now_ms();
    let mut out = info([
        ("target", target.name.clone()),
        ("state", state(context, target)),
        ("cordoned", target.cordoned.clone().unwrap_or_default()),
        ("place", format!("region {}, zone {}", target.region, target.zone)),
        ("labels", labels(&target.labels)),
        ("address", target.address.clone()),
        ("agent", target.agent_version.clone()),
        ("joined", human::ago(target.joined_at, now)),
    ]);
    for seen in &target.observations {
        let release = or_dash(seen.release.clone());
        let serving = if seen.serving { "serving" } else { "not serving" };
        out += &format!(
            "\n{} {release}: {}, {serving}, reported {}\n",
            seen.pipeline,
            context.output.state(&seen.progress),
            human::ago(seen.at, now)
        );
        for instance in &seen.instances {
            let ports: Vec<String> = instance.ports.iter().map(|(name, port)| format!("{name}:{port}")).collect();
            let restarts = if instance.restarts > 0 {
                format!(", restarted {}", human::count(instance.restarts.into(), "time"))
            } else {
                String::new()
            };
            out += &format!("  {} {} {} {}{restarts}\n", instance.service, instance.release, instance.state, ports.join(" "));
        }
        if let Some(failure) = &seen.failure {
            let failure = views::FailedTarget { target: target.name.clone(), ..failure.clone() };
            out += &failed_targets(std::slice::from_ref(&failure));
        }
    }
    out
}
