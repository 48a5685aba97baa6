//! `swell env`: named sets of targets, and the policy for changing them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{LIST_MAX, body, choose, key_value, labels, or_dash};
use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Result},
    human,
    output::{info, table},
    views::{self, Deployment, Environment},
};
use swell_model::units::{Amount, Millis};

/// How many targets are named.
const NAMED_MAX: usize = 20;

/// `swell env`
#[derive(Debug, clap::Subcommand)]
pub enum EnvCommand {
    /// Create an environment
    Create(CreateArgs),
    /// List environments
    Ls,
    /// Show an environment and what runs there
    Show {
        /// Which
        name: String,
    },
    /// Forbid deploying; rolling back stays possible
    Freeze {
        /// Which
        name: String,
        /// Why, for everyone who then cannot deploy
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
    /// Allow deploying again
    Unfreeze {
        /// Which
        name: String,
    },
    /// Let a release that was rolled back be deployed again
    Clear {
        /// Which environment
        name: String,
        /// Which release, such as shop@12
        release: String,
    },
}

/// `swell env create NAME`
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Its name
    pub name: String,
    /// A label that its targets have, as NAME=VALUE; once for each; without any it has every target
    #[arg(long = "select", value_name = "LABEL", value_parser = key_value)]
    pub select: Vec<(String, String)>,
    /// Every wave but the last bakes at least so long, such as 5m
    #[arg(long, value_name = "TIME")]
    pub least_bake: Option<Millis>,
    /// The first wave is at most this: a count such as 3, or a share such as 10%
    #[arg(long, value_name = "AMOUNT")]
    pub first_wave_max: Option<Amount>,
}

/// Does it.
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
            done(context, act(&client, &["v1", "environments", &name, "freeze"], json!({ "why": why }), &name).await?)
        }
        EnvCommand::Unfreeze { name } => {
            done(context, act(&client, &["v1", "environments", &name, "unfreeze"], json!({}), &name).await?)
        }
        EnvCommand::Clear { name, release } => {
            let path = ["v1", "environments", &name, "quarantine", &release, "clear"];
            done(context, act(&client, &path, json!({}), &name).await?)
        }
    }
}

async fn act(client: &Client, path: &[&str], body: Value, name: &str) -> Result<Value> {
    match client.post(path, &body).await {
        Ok(value) => Ok(value),
        Err(failure) => Err(choose::suggest(client, failure, &["v1", "environments"], name).await),
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
        table(header, environments.into_iter().map(row), "there is no environment yet: `swell env create production`")
    })?;
    Ok(Exit::Done)
}

async fn show(context: &Context, client: &Client, name: &str) -> Result<Exit> {
    let mut value = match client.get(&["v1", "environments", name], &[]).await {
        Ok(value) => value,
        Err(failure) => return Err(choose::suggest(client, failure, &["v1", "environments"], name).await),
    };
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
        let header = ["PIPELINE", "RUNS", "BACK TO", "AT WORK", "QUARANTINED"];
        text(&environment) + "\n" + &table(header, deployments.into_iter().map(row), "nothing was deployed here yet")
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
