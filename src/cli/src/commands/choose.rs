//! Finding out what is meant where something was left out: the environment, a release's pipeline. Knows nothing of what is done there.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use serde_json::Value;

use super::LIST_MAX;
use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Failure, Result},
    human,
    views::{self, Deployment, Environment},
};
use swell_model::ids::ReleaseId;

/// The environment that is meant: `--env`, else the setting, else the only one that there is.
pub async fn environment(context: &Context, client: &Client, given: Option<String>) -> Result<String> {
    if let Some(name) = given.or_else(|| context.settings.value("environment").map(str::to_owned)) {
        return Ok(name);
    }
    let all: Vec<Environment> = views::read_all(&client.list(&["v1", "environments"], &[], LIST_MAX).await?)?;
    let names: Vec<String> = all.into_iter().map(|environment| environment.name).collect();
    match names.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Failure::usage("there is no environment yet").hint("create one: `swell env create production`")),
        [first, ..] => {
            let failure = Failure::new(Exit::Usage, "ambiguous", format!("there are several environments: {}", names.join(", ")));
            pick(&names, failure.hint(format!("say which: --env {first}")))
        }
    }
}

/// The plan that `wanted` asks for. Where it leaves out the environment and the server cannot tell which, a person chooses.
pub async fn plan(client: &Client, mut wanted: Value) -> Result<Value> {
    match client.post(&["v1", "plans"], &wanted).await {
        Err(failure) if failure.code() == "ambiguous" => {
            wanted["environment"] = pick(&failure.choices(), failure)?.into();
            client.post(&["v1", "plans"], &wanted).await
        }
        answer => answer,
    }
}

/// Lets a person choose; a script gets the failure instead.
pub fn pick(choices: &[String], otherwise: Failure) -> Result<String> {
    if choices.is_empty() || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(otherwise);
    }
    for (number, choice) in choices.iter().enumerate() {
        eprintln!("  {}) {choice}", number + 1);
    }
    let answer = ask("which? ")?;
    let by_number = answer.parse::<usize>().ok().and_then(|number| choices.get(number.checked_sub(1)?));
    by_number.or_else(|| choices.iter().find(|choice| **choice == answer)).cloned().ok_or(otherwise)
}

/// Asks a person for a line.
pub fn ask(question: &str) -> Result<String> {
    let mut err = io::stderr().lock();
    write!(err, "{question}")?;
    err.flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Goes on only if a person agrees, or `--yes` says that one did.
pub fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    let refused = Failure::usage(format!("{question}: not confirmed")).hint("repeat it with --yes");
    if !io::stdin().is_terminal() || !matches!(ask(&format!("{question}? [y/N] "))?.as_str(), "y" | "Y" | "yes") {
        return Err(refused);
    }
    Ok(())
}

/// A release of `pipeline`: `shop@12`, or its number alone.
pub fn release(pipeline: &str, text: &str) -> Result<String> {
    if text.parse::<ReleaseId>().is_ok() {
        return Ok(text.to_owned());
    }
    match text.parse::<u64>() {
        Ok(number) => Ok(format!("{pipeline}@{number}")),
        Err(_) => Err(Failure::usage(format!("`{text}` is not a release"))
            .hint(format!("write {pipeline}@12, or 12; `swell history {pipeline}` lists them"))),
    }
}

/// What a pipeline has, environment by environment.
pub async fn deployments(client: &Client, pipeline: Option<&str>) -> Result<Vec<(Deployment, Value)>> {
    let mut found = Vec::new();
    for value in client.list(&["v1", "environments"], &[], LIST_MAX).await? {
        let environment: Environment = views::read(&value)?;
        for value in client.list(&["v1", "environments", &environment.name, "deployments"], &[], LIST_MAX).await? {
            let deployment: Deployment = views::read(&value)?;
            if pipeline.is_none_or(|pipeline| deployment.pipeline == pipeline) {
                found.push((deployment, value));
            }
        }
    }
    Ok(found)
}

/// Adds the name that was perhaps meant to the failure that `name` is unknown in the list at `path`.
pub async fn suggest(client: &Client, failure: Failure, path: &[&str], name: &str) -> Failure {
    if failure.code() != "not_found" {
        return failure;
    }
    let names = client.list(path, &[], LIST_MAX).await.unwrap_or_default();
    let names = names.iter().filter_map(|item| item.get("name").and_then(Value::as_str).map(str::to_owned));
    match human::alike(name, names) {
        Some(meant) => failure.hint(format!("did you mean `{meant}`?")),
        None => failure,
    }
}
