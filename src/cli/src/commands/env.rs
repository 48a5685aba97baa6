//! `swell env`: environments, and the policy for changing them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{LIST_MAX, body, labels, or_dash};
use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Failure, Result},
    flag_values::key_value,
    human,
    output::{info, table},
    views::{self, Deployment, Environment},
};
use swell_model::units::{Amount, Millis};

/// How many targets are listed by name.
const NAMED_MAX: usize = 20;

/// Subcommands of `swell env`
#[derive(Debug, clap::Subcommand)]
pub enum EnvCommand {
    /// Creates an environment
    Create(CreateArgs),
    /// Lists the environments of the cluster
    Ls,
    /// Shows an environment and what runs there
    Show {
        /// Name of the environment
        name: String,
    },
    /// Forbids deploys to an environment; rollbacks stay possible
    Freeze {
        /// Name of the environment
        name: String,
        /// Reason, shown to everyone who tries to deploy (required)
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        why: String,
    },
    /// Allows deploys to a frozen environment again
    Unfreeze {
        /// Name of the environment
        name: String,
    },
    /// Allows a quarantined release to be deployed again
    Clear {
        /// Name of the environment
        name: String,
        /// Quarantined release, such as shop@12
        release: String,
    },
}

/// `swell env create NAME`
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Name of the environment
    pub name: String,
    /// Label that its targets have; repeat it for each label [default: every target]
    #[arg(long = "select", value_name = "NAME=VALUE", value_parser = key_value)]
    pub select: Vec<(String, String)>,
    /// Least bake time of every wave but the last, such as 5m
    #[arg(long, value_name = "TIME")]
    pub least_bake: Option<Millis>,
    /// Largest first wave: a number of targets such as 3, or a share such as 10%
    #[arg(long, value_name = "AMOUNT")]
    pub first_wave_max: Option<Amount>,
}

/// Runs `swell env`.
pub async fn run(context: &Context, command: EnvCommand) -> Result<Exit> {
    let client = context.client()?;
    match command {
        EnvCommand::Ls => list(context, &client).await,
        EnvCommand::Show { name } => show(context, &client, &name).await,
        EnvCommand::Create(args) => {
            let selector: BTreeMap<String, String> = args.select.into_iter().collect();
            let request = body([
                ("name", Some(json!(args.name))),
                ("selector", Some(json!(selector))),
                ("least_bake", args.least_bake.map(|bake| json!(bake))),
                ("first_wave_max", args.first_wave_max.map(|most| json!(most))),
            ]);
            done(context, client.post(&["v1", "environments"], &request).await?)
        }
        EnvCommand::Freeze { name, why } => {
            if why.trim().is_empty() {
                let failure = Failure::usage("--why is required: everyone who cannot deploy sees it");
                return Err(failure.hint(format!("run `swell env freeze {name} --why TEXT`")));
            }
            done(context, client.post(&["v1", "environments", &name, "freeze"], &json!({ "why": why })).await?)
        }
        EnvCommand::Unfreeze { name } => {
            done(context, client.post(&["v1", "environments", &name, "unfreeze"], &json!({})).await?)
        }
        EnvCommand::Clear { name, release } => {
            let path = ["v1", "environments", &name, "quarantine", &release, "clear"];
            done(context, client.post(&path, &json!({})).await?)
        }
    }
}

async fn list(context: &Context, client: &Client) -> Result<Exit> {
    let items = client.list(&["v1", "environments"], &[], LIST_MAX).await?;
    let environments: Vec<Environment> = views::read_all(&items)?;
    let row = |environment: Environment| {
        let frozen = environment.frozen.as_ref().map(|freeze| format!("by {}: {}", freeze.by, freeze.why));
        [environment.name, environment.members.count.to_string(), labels(&environment.selector), or_dash(frozen)]
    };
    let header = ["ENVIRONMENT", "TARGETS", "SELECTS", "FROZEN"];
    context.output.result(&json!({ "items": items }), || {
        table(header, environments.into_iter().map(row), "no environments; create one with `swell env create production`")
    })?;
    Ok(Exit::Done)
}

async fn show(context: &Context, client: &Client, name: &str) -> Result<Exit> {
    let mut value = client.get(&["v1", "environments", name], &[]).await?;
    let environment: Environment = views::read(&value)?;
    let items = client.list(&["v1", "environments", name, "deployments"], &[], LIST_MAX).await?;
    let deployments: Vec<Deployment> = views::read_all(&items)?;
    if let Value::Object(fields) = &mut value {
        fields.insert("deployments".to_owned(), Value::Array(items));
    }
    context.output.result(&value, || {
        let row = |deployment: Deployment| {
            let quarantined: Vec<String> = deployment.quarantined.into_iter().map(|kept| kept.release).collect();
            [
                deployment.pipeline,
                or_dash(deployment.stable),
                or_dash(deployment.former),
                or_dash(deployment.rollout),
                or_dash(Some(quarantined.join(" "))),
            ]
        };
        let header = ["PIPELINE", "RELEASE", "ROLLBACK TO", "ROLLOUT", "QUARANTINED"];
        text(&environment) + "\n" + &table(header, deployments.into_iter().map(row), "nothing is deployed here")
    })?;
    Ok(Exit::Done)
}

fn done(context: &Context, value: Value) -> Result<Exit> {
    let environment: Environment = views::read(&value)?;
    context.output.result(&value, || text(&environment))?;
    Ok(Exit::Done)
}

fn text(environment: &Environment) -> String {
    let names: Vec<&str> = environment.members.names.iter().take(NAMED_MAX).map(String::as_str).collect();
    let more = environment.members.count.saturating_sub(names.len() as u64);
    let more = if more > 0 && !names.is_empty() { format!(" and {more} more") } else { String::new() };
    info([
        ("environment", environment.name.clone()),
        ("selects", if environment.selector.is_empty() { "every target".to_owned() } else { labels(&environment.selector) }),
        ("targets", format!("{} {}{more}", environment.members.count, names.join(", ")).trim_end().to_owned()),
        ("frozen", environment.frozen.as_ref().map(|freeze| format!("by {}: {}", freeze.by, freeze.why)).unwrap_or_default()),
        ("least bake", environment.least_bake_ms.map(human::setting).unwrap_or_default()),
        ("first wave", environment.first_wave_max.as_ref().map(|most| format!("at most {most}")).unwrap_or_default()),
    ])
}
