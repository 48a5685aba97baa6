//! `swell fleet`: the servers on which releases run.

use serde_json::{Value, json};

use super::{LIST_MAX, choose, labels, or_dash};
use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Result},
    follow::failed_targets,
    human,
    output::{info, table},
    views::{self, Target},
};

/// `swell fleet`
#[derive(Debug, clap::Subcommand)]
pub enum FleetCommand {
    /// List targets
    Ls(ListArgs),
    /// Show a target and what runs there
    Show {
        /// Which
        name: String,
    },
    /// Keep rollouts from changing a target
    Cordon {
        /// Which
        name: String,
        /// Why
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
    /// Let rollouts change it again
    Uncordon {
        /// Which
        name: String,
    },
}

/// `swell fleet ls`
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only of this environment
    #[arg(long, short = 'e', value_name = "NAME")]
    pub env: Option<String>,
    /// Only in this region
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
    /// Only in zones of this name
    #[arg(long, value_name = "NAME")]
    pub zone: Option<String>,
    /// Only those that are connected, or are not
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub connected: Option<bool>,
    /// How many
    #[arg(long, short = 'n', default_value_t = LIST_MAX, value_name = "N")]
    pub limit: usize,
}

/// Does it.
pub async fn run(context: &Context, command: FleetCommand) -> Result<Exit> {
    let client = context.client()?;
    match command {
        FleetCommand::Ls(args) => list(context, &client, args).await,
        FleetCommand::Show { name } => {
            let shown = client.get(&["v1", "targets", &name], &[]).await;
            done(context, &client, &name, shown).await
        }
        FleetCommand::Cordon { name, why } => {
            let done_to = client.post(&["v1", "targets", &name, "cordon"], &json!({ "why": why })).await;
            done(context, &client, &name, done_to).await
        }
        FleetCommand::Uncordon { name } => {
            let done_to = client.post(&["v1", "targets", &name, "uncordon"], &json!({})).await;
            done(context, &client, &name, done_to).await
        }
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
        table(header, targets.into_iter().map(row), "no target: start `swell agent` on a server")
    })?;
    Ok(Exit::Done)
}

fn state(context: &Context, target: &Target) -> String {
    let state = context.output.state(if target.connected { "connected" } else { "lost" });
    if target.cordoned.is_some() { format!("{state}, cordoned") } else { state }
}

async fn done(context: &Context, client: &Client, name: &str, answer: Result<Value>) -> Result<Exit> {
    let value = match answer {
        Ok(value) => value,
        Err(failure) => return Err(choose::suggest(client, failure, &["v1", "targets"], name).await),
    };
    let target: Target = views::read(&value)?;
    context.output.result(&value, || text(context, &target))?;
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
            "\n{} {release}: {}, {serving}, said {}\n",
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
