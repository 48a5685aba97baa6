//! What a user of `swell.toml` would notice.

#![allow(clippy::unwrap_used)]

mod example;
mod properties;
mod refusals;
mod schema;

use crate::pipeline_file::{Diagnostic, PipelineFile};

/// The example of the documentation, with every key.
const EXAMPLE: &str = include_str!("../../../../../config/swell.example.toml");

fn parse(text: &str) -> PipelineFile {
    PipelineFile::parse(text).unwrap_or_else(|found| panic!("{}", super::render_all(&found, "swell.toml", text)))
}

/// `line:column code: message (help)` of each problem.
fn listed(found: &[Diagnostic]) -> Vec<String> {
    let line = |found: &Diagnostic| {
        let help = found.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{}:{} {}: {}{help}", found.line, found.column, found.code, found.message)
    };
    found.iter().map(line).collect()
}

/// The file as TOML. An empty list is how a list that was not given is kept, and some may not be written empty.
fn printed(file: &PipelineFile) -> String {
    fn without_empty_lists(table: toml::Table) -> toml::Table {
        let kept = table.into_iter().filter(|(_, value)| value.as_array().is_none_or(|list| !list.is_empty()));
        let inner = |value| match value {
            toml::Value::Table(table) => toml::Value::Table(without_empty_lists(table)),
            toml::Value::Array(items) => toml::Value::Array(items.into_iter().map(inner_item).collect()),
            other => other,
        };
        kept.map(|(key, value)| (key, inner(value))).collect()
    }
    fn inner_item(item: toml::Value) -> toml::Value {
        match item {
            toml::Value::Table(table) => toml::Value::Table(without_empty_lists(table)),
            other => other,
        }
    }
    without_empty_lists(toml::Table::try_from(file).unwrap()).to_string()
}
