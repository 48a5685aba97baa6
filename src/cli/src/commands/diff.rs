//! `swell diff`: the differences between two releases: commit, artifact, and the keys of the pipeline file.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::choose;
use crate::{
    context::Context,
    failure::{Exit, Failure, Result},
    output::Tone,
    views::{self, Release},
};

/// `swell diff A B`
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// Older release, such as shop@11
    pub a: String,
    /// Newer release, such as shop@12 or 12
    pub b: String,
}

/// A value that differs between two releases; `None` on the side that lacks it.
#[derive(Debug, Clone, PartialEq)]
struct Change {
    path: String,
    from: Option<Value>,
    to: Option<Value>,
}

/// Runs `swell diff`.
pub async fn run(context: &Context, args: DiffArgs) -> Result<Exit> {
    let (pipeline, _) = args.a.rsplit_once('@').ok_or_else(|| {
        Failure::usage(format!("`{}` is not a release", args.a))
            .hint("write PIPELINE@NUMBER, such as shop@11; `swell history` lists releases")
    })?;
    let b = choose::release(pipeline, &args.b)?;
    let client = context.client()?;
    let from: Release = views::read(&client.get(&["v1", "releases", &args.a], &[]).await?)?;
    let to: Release = views::read(&client.get(&["v1", "releases", &b], &[]).await?)?;
    let changes = changes(&from, &to);
    let value = json!({
        "from": from.id,
        "to": to.id,
        "changes": changes.iter().map(|change| json!({ "path": change.path, "from": change.from, "to": change.to })).collect::<Vec<_>>(),
    });
    context.output.result(&value, || {
        let mut out = format!("{} -> {}\n", from.id, to.id);
        if changes.is_empty() {
            out += "no differences\n";
        }
        for Change { path, from, to } in &changes {
            let (tone, line) = match (from, to) {
                (None, Some(to)) => (Tone::Good, format!("+ {path} = {to}")),
                (Some(from), None) => (Tone::Bad, format!("- {path} = {from}")),
                (from, to) => (Tone::Notice, format!("~ {path}: {} -> {}", shown(from), shown(to))),
            };
            out += &(context.output.paint(tone, &line) + "\n");
        }
        out
    })?;
    Ok(Exit::Done)
}

fn shown(value: &Option<Value>) -> String {
    value.as_ref().map_or_else(|| "nothing".to_owned(), Value::to_string)
}

fn changes(from: &Release, to: &Release) -> Vec<Change> {
    let mut changes = Vec::new();
    let info =
        [("commit", &from.commit, &to.commit), ("ref", &from.git_ref, &to.git_ref), ("artifact", &from.artifact, &to.artifact)];
    for (name, from, to) in info {
        if from != to {
            changes.push(Change { path: name.to_owned(), from: Some(json!(from)), to: Some(json!(to)) });
        }
    }
    let (before, after) = (flat(&from.file), flat(&to.file));
    let mut paths: Vec<&String> = before.keys().chain(after.keys()).collect();
    paths.sort();
    paths.dedup();
    for path in paths {
        let (from, to) = (before.get(path), after.get(path));
        if from != to {
            changes.push(Change { path: path.clone(), from: from.cloned(), to: to.cloned() });
        }
    }
    changes
}

/// Every value by its path of keys, such as `service.api.env.LOG`. Lists are compared whole.
fn flat(value: &Value) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let mut open = vec![(String::new(), value)];
    while let Some((path, value)) = open.pop() {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                let below = |name: &String| if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                open.extend(fields.iter().map(|(name, value)| (below(name), value)));
            }
            Value::Null => {}
            Value::Object(_) => {}
            value => drop(found.insert(path, value.clone())),
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_listed_by_path_of_keys() {
        let release = |commit: &str, file: Value| Release { commit: commit.to_owned(), file, ..Release::default() };
        let from = release("a", json!({ "build": { "run": "make" }, "service": { "api": { "env": { "LOG": "info" } } } }));
        let to =
            release("b", json!({ "build": { "run": "make" }, "service": { "api": { "env": { "LOG": "warn", "X": "1" } } } }));
        let found: Vec<_> = changes(&from, &to).into_iter().map(|change| (change.path, change.from, change.to)).collect();
        let expected = [
            ("commit".to_owned(), Some(json!("a")), Some(json!("b"))),
            ("service.api.env.LOG".to_owned(), Some(json!("info")), Some(json!("warn"))),
            ("service.api.env.X".to_owned(), None, Some(json!("1"))),
        ];
        assert_eq!(found, expected);
    }
}
