//! A file for each command or noun. Table of contents, and helpers that several of them use.

// Building and deploying.
pub mod act;
pub mod build;
pub mod deploy;
pub mod init;
pub mod plan;
pub mod rollback;
pub mod schema;
pub mod validate;

// Inspecting.
pub mod diff;
pub mod events;
pub mod history;
pub mod logs;
pub mod status;
pub mod why;

// Nouns.
pub mod artifact;
pub mod cluster;
pub mod env;
pub mod fleet;
pub mod pipeline;
pub mod repo;

// This program.
pub mod completion;
pub mod config;
pub mod doctor;
pub mod login;
pub mod version;
pub mod whoami;

mod choose;
mod finish;
mod overview;

/// How many items a list shows by default.
pub const LIST_MAX: usize = 1000;

/// The text, or a dash if there is none.
fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

/// `a=1,b=2`, or a dash.
fn labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    or_dash(Some(labels.join(",")))
}

/// A request body of the fields that have a value.
fn body<const N: usize>(fields: [(&str, Option<serde_json::Value>); N]) -> serde_json::Value {
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<serde_json::Map<_, _>>().into()
}
