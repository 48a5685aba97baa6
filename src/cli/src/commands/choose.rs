//! Resolves omitted arguments, such as the environment, and asks where a choice is left.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use serde_json::Value;

use super::LIST_MAX;
use crate::{
    client::Client,
    context::Context,
    failure::{Exit, Failure, Result},
    views::{self, Deployment, Environment},
};
use swell_model::ids::ReleaseId;

/// The environment to use: `--env`, else the setting, else the only one that exists.
pub async fn environment(context: &Context, client: &Client, given: Option<String>) -> Result<String> {
    if let Some(name) = given.or_else(|| context.settings.value("environment").map(str::to_owned)) {
        return Ok(name);
    }
    let all: Vec<Environment> = views::read_all(&client.list(&["v1", "environments"], &[], LIST_MAX).await?)?;
    let names: Vec<String> = all.into_iter().map(|environment| environment.name).collect();
    match names.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Failure::usage("there is no environment").hint("create one with `swell env create production`")),
        [first, ..] => {
            let failure = Failure::new(
                Exit::Usage,
                "ambiguous",
                format!("--env is required: there are {} environments: {}", names.len(), names.join(", ")),
            );
            pick(&names, failure.hint(format!("add --env {first}")))
        }
    }
}

/// Requests a plan. If the environment is omitted and ambiguous, the user chooses.
pub async fn plan(client: &Client, mut wanted: Value) -> Result<Value> {
    match client.post(&["v1", "plans"], &wanted).await {
        Err(failure) if failure.code() == "ambiguous" => {
            wanted["environment"] = pick(&failure.choices(), failure)?.into();
            client.post(&["v1", "plans"], &wanted).await
        }
        answer => answer,
    }
}

/// Lets the user choose; without a terminal, returns the failure `otherwise`.
pub fn pick(choices: &[String], otherwise: Failure) -> Result<String> {
    if choices.is_empty() || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(otherwise);
    }
    for (number, choice) in choices.iter().enumerate() {
        eprintln!("  {}) {choice}", number + 1);
    }
    let answer = ask("choose: ")?;
    let by_number = answer.parse::<usize>().ok().and_then(|number| choices.get(number.checked_sub(1)?));
    by_number.or_else(|| choices.iter().find(|choice| **choice == answer)).cloned().ok_or(otherwise)
}

/// Asks the user for a line.
pub fn ask(question: &str) -> Result<String> {
    let mut err = io::stderr().lock();
    write!(err, "{question}")?;
    err.flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Asks for confirmation, unless `--yes` gave it.
pub fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    let refused = Failure::usage(format!("not confirmed: {question}")).hint("add --yes to confirm");
    if !io::stdin().is_terminal() || !matches!(ask(&format!("{question}? [y/N] "))?.as_str(), "y" | "Y" | "yes") {
        return Err(refused);
    }
    Ok(())
}

/// The id of a release of `pipeline`, given as `shop@12` or as its number.
pub fn release(pipeline: &str, text: &str) -> Result<String> {
    if text.parse::<ReleaseId>().is_ok() {
        return Ok(text.to_owned());
    }
    match text.parse::<u64>() {
        Ok(number) => Ok(format!("{pipeline}@{number}")),
        Err(_) => Err(Failure::usage(format!("`{text}` is not a release"))
            .hint(format!("write {pipeline}@12 or 12; `swell history {pipeline}` lists releases"))),
    }
}

/// The deployments of one pipeline or all, by environment.
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
