//! `health = { … }`: how an agent sees that a service works. Knows nothing of how probes are made.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pipeline_file::{read::Value, schema, service::read_command};
use crate::{ids::PortName, units::Millis};

/// How a service shows that it works. A service without a probe is healthy while it stays up.
///
/// Healthy means: its probe has passed, or without one it has run, for `min_healthy` without a restart, after at most
/// `start_timeout`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Health {
    /// The port to probe: over TCP, or over HTTP where `http` is given. May be left out where the service has just one.
    #[schemars(with = "String")]
    pub port: Option<PortName>,
    /// The path of an HTTP probe: a GET must answer with a status from 200 to 399.
    #[schemars(with = "String")]
    pub http: Option<String>,
    /// A command that must exit with 0; run like the service, beside it.
    pub command: Vec<String>,
    /// From the start of one probe to the start of the next, such as "2s" (50ms to 10m).
    #[schemars(with = "schema::DurationText")]
    pub interval: Millis,
    /// How long one probe may take, such as "1s" (50ms to 10m).
    #[schemars(with = "schema::DurationText")]
    pub timeout: Millis,
    /// How long the service may take until its first passing probe, such as "90s" (100ms to 1h).
    #[schemars(with = "schema::DurationText")]
    pub start_timeout: Millis,
    /// How long probes must have passed before the service counts as healthy, such as "10s" (0s to 1h).
    #[schemars(with = "schema::DurationText")]
    pub min_healthy: Millis,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            port: None,
            http: None,
            command: Vec::new(),
            interval: Millis::from_secs(2),
            timeout: Millis::from_secs(1),
            start_timeout: Millis::from_secs(90),
            min_healthy: Millis::from_secs(10),
        }
    }
}

/// What a probe does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe<'h> {
    /// Nothing: the service is well while it stays up.
    Alive,
    /// Connects to a port.
    Tcp {
        /// Which.
        port: &'h PortName,
    },
    /// Asks for a path over HTTP/1.1.
    Http {
        /// Which port.
        port: &'h PortName,
        /// Which path, beginning with `/`.
        path: &'h str,
    },
    /// Runs a command, which may contain `${…}`.
    Command(&'h [String]),
}

impl Health {
    /// What the probe does.
    pub fn probe(&self) -> Probe<'_> {
        match (&self.port, &self.http, &self.command[..]) {
            (Some(port), Some(path), _) => Probe::Http { port, path },
            (Some(port), None, _) => Probe::Tcp { port },
            (None, _, []) => Probe::Alive,
            (None, _, command) => Probe::Command(command),
        }
    }

    pub(super) fn read(value: Value<'_>) -> Option<Self> {
        let section = value.section()?;
        let default = Self::default();
        let (least, most) = (Millis(50), Millis::from_secs(600));
        let hour = Millis::from_secs(3600);
        let health = Self {
            port: section.opt("port", |value| value.parsed(r#""http""#)),
            http: section.opt("http", read_path),
            command: section.or("command", Vec::new(), |value| read_command(&value)),
            interval: section.or("interval", default.interval, |value| value.duration(least, most)),
            timeout: section.or("timeout", default.timeout, |value| value.duration(least, most)),
            start_timeout: section.or("start_timeout", default.start_timeout, |value| value.duration(Millis(100), hour)),
            min_healthy: section.or("min_healthy", default.min_healthy, |value| value.duration(Millis(0), hour)),
        };
        if !health.command.is_empty() && (health.port.is_some() || health.http.is_some()) {
            let message = format!("`{}` has a command and a port: only one of them can probe", section.path);
            section.report("contradiction", message, Some("keep `command`, or `port` with or without `http`".to_owned()));
        }
        section.finish();
        Some(health)
    }
}

/// The path of a request.
pub(super) fn read_path(value: Value<'_>) -> Option<String> {
    let path = value.text(r#""/healthz""#)?;
    if path.starts_with('/') && path.chars().all(|c| c.is_ascii_graphic()) {
        return Some(path);
    }
    value.report(
        "bad_value",
        format!("`{path}` is not the path of a request"),
        Some("write one such as \"/healthz\"".to_owned()),
    );
    None
}
