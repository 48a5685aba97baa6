//! `[task.NAME]` and `[environment.NAME]`: what runs once around a rollout, and what an environment changes.
//! Knows nothing of when tasks run.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pipeline_file::{
    build::{SECRETS_MAX, VariableName, read_env},
    read::Value,
    schema,
    service::{SecretUse, read_command},
};
use crate::units::Millis;

/// A command that runs before or after a rollout, such as a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Task {
    /// The program and its arguments, relative to the release's folder; `${…}` is filled in, but for ports.
    pub command: Vec<String>,
    /// Where it runs.
    #[serde(default)]
    pub run_on: RunOn,
    /// Whether it may run again when its end is not known.
    #[serde(default)]
    pub idempotent: bool,
    /// How long it may take, such as "10m" (1s to 1d).
    #[serde(default = "default_timeout")]
    #[schemars(with = "schema::DurationText")]
    pub timeout: Millis,
    /// Environment variables; `${…}` is filled in, but for ports.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Environment variables that hold a secret, or with `{ file = … }` the path of a file that holds it.
    #[serde(default)]
    pub secrets: BTreeMap<String, SecretUse>,
}

fn default_timeout() -> Millis {
    Millis::from_secs(600)
}

impl Task {
    pub(super) fn read(value: Value<'_>) -> Option<Self> {
        let section = value.section()?;
        let secrets = section.opt("secrets", |value| value.entries::<VariableName>(SECRETS_MAX)).unwrap_or_default();
        let day = Millis::from_secs(24 * 3600);
        let task = Self {
            command: section.required("command", r#"["bin/migrate", "up"]"#, |value| read_command(&value)),
            run_on: section.or("run_on", RunOn::One, |value| value.word(&[("one", RunOn::One), ("runner", RunOn::Runner)])),
            idempotent: section.or("idempotent", false, |value| value.boolean()),
            timeout: section.or("timeout", default_timeout(), |value| value.duration(Millis::from_secs(1), day)),
            env: read_env(&section),
            secrets: secrets.into_iter().filter_map(|(name, value)| Some((name.0, SecretUse::read(&value)?))).collect(),
        };
        section.finish();
        Some(task)
    }
}

/// Where a task runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "kebab-case")]
pub enum RunOn {
    /// On one target of the first wave.
    #[default]
    One,
    /// On a runner.
    Runner,
}

/// `[environment.NAME]`: what is different there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct EnvironmentSettings {
    /// Variables that every service has there, in place of its own of the same name; `${…}` is filled in.
    pub env: BTreeMap<String, String>,
}

impl EnvironmentSettings {
    pub(super) fn read(value: Value<'_>) -> Option<Self> {
        let section = value.section()?;
        let settings = Self { env: read_env(&section) };
        section.finish();
        Some(settings)
    }
}
