//! One file for each command or noun. Table of contents, and what several of them need.

// From a repository to a fleet.
pub mod act;
pub mod build;
pub mod deploy;
pub mod init;
pub mod plan;
pub mod rollback;
pub mod schema;
pub mod validate;

// Looking.
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

/// The most items that a list shows unless told.
pub const LIST_MAX: usize = 1000;

/// `NAME=VALUE`
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// A dash for what is not there.
fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

/// `a=1,b=2`, or a dash.
fn labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    or_dash(Some(labels.join(",")))
}

/// The fields of a request that are given.
fn body<const N: usize>(fields: [(&str, Option<serde_json::Value>); N]) -> serde_json::Value {
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<serde_json::Map<_, _>>().into()
}
