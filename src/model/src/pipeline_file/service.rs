//! `[service.NAME]`: a process that a release runs on each target. Knows nothing of how agents supervise it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pipeline_file::{
    build::{SECRETS_MAX, VariableName, read_env, read_secret_name},
    health::{Health, Probe},
    quantities::{Thousandths, exact_size_if_any},
    read::Value,
    schema,
};
use crate::{
    ids::PortName,
    units::{ByteSize, Millis},
};

/// The most ports of one service.
const PORTS_MAX: usize = 32;
/// The most words of one command.
const WORDS_MAX: usize = 256;
/// The most kept folders of one service.
const DATA_MAX: usize = 32;

/// A process, or a systemd unit, that a release runs on each target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Service {
    /// The program and its arguments, relative to the release's folder; `${…}` is filled in. Empty for a systemd unit.
    pub command: Vec<String>,
    /// The systemd unit that runs the service in place of `command`; it then says itself as whom and with which limits.
    #[schemars(with = "String")]
    pub systemd: Option<String>,
    /// The ports it listens on, by name.
    #[schemars(with = "BTreeMap<String, Port>")]
    pub ports: BTreeMap<PortName, Port>,
    /// Whether a new instance starts beside the old one or in its place. Default: in place for a systemd unit and for
    /// a service with a fixed port, else beside. A fixed port with "beside" needs a program that shares it (SO_REUSEPORT).
    pub start: Start,
    /// Environment variables; `${…}` is filled in.
    pub env: BTreeMap<String, String>,
    /// Environment variables that hold a secret, or with `{ file = … }` the path of a file that holds it.
    pub secrets: BTreeMap<String, SecretUse>,
    /// The user that it runs as; without it, a user of its own that the agent makes.
    #[schemars(with = "String")]
    pub user: Option<String>,
    /// Absolute folders that it keeps across releases.
    pub data: Vec<String>,
    /// What it may use at most.
    pub limits: Limits,
    /// How it shows that it works; without a probe it is healthy while it stays up.
    pub health: Health,
    /// How it is stopped.
    pub stop: Stop,
    /// Where its output goes.
    pub log: Log,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            systemd: None,
            ports: BTreeMap::new(),
            start: Start::Beside,
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            user: None,
            data: Vec::new(),
            limits: Limits::default(),
            health: Health::default(),
            stop: Stop::default(),
            log: Log::File,
        }
    }
}

impl Service {
    /// Whether a gateway can split its traffic: it is probed over HTTP or has a port that is called `http`.
    pub fn speaks_http(&self) -> bool {
        matches!(self.health.probe(), Probe::Http { .. }) || self.ports.keys().any(|port| port.as_str() == "http")
    }

    pub(super) fn read(value: Value<'_>) -> Option<Self> {
        let section = value.section()?;
        let systemd = section.opt("systemd", |value| {
            let unit = value.text(r#""legacy.service""#)?;
            if unit.ends_with(".service") && !unit.contains(|c: char| c == '/' || c.is_whitespace()) {
                return Some(unit);
            }
            let help = Some("write the name of a service unit such as \"legacy.service\"".to_owned());
            value.report("bad_value", format!("`{unit}` is not a service unit"), help);
            None
        });
        let ports = section.opt("ports", |value| value.entries::<PortName>(PORTS_MAX)).unwrap_or_default();
        let ports: BTreeMap<_, _> = ports.into_iter().filter_map(|(name, value)| Some((name, Port::read(&value)?))).collect();
        let is_fixed = ports.values().any(|port| matches!(port, Port::Fixed(_)));
        let start = if systemd.is_some() || is_fixed { Start::InPlace } else { Start::Beside };
        let starts = [("beside", Start::Beside), ("in-place", Start::InPlace)];
        let secrets = section.opt("secrets", |value| value.entries::<VariableName>(SECRETS_MAX)).unwrap_or_default();
        let drain = if ports.is_empty() { Millis(0) } else { Stop::default().drain };
        let mut service = Self {
            command: section.or("command", Vec::new(), |value| read_command(&value)),
            start: section.or("start", start, |value| value.word(&starts)),
            env: read_env(&section),
            secrets: secrets.into_iter().filter_map(|(name, value)| Some((name.0, SecretUse::read(&value)?))).collect(),
            user: section.opt("user", read_user),
            data: section.or("data", Vec::new(), read_folders),
            limits: section.or("limits", Limits::default(), Limits::read),
            health: section.or("health", Health::default(), Health::read),
            stop: section.or("stop", Stop { drain, ..Stop::default() }, |value| Stop::read(value, drain)),
            log: section.or("log", Log::File, |value| value.word(&[("file", Log::File), ("journald", Log::Journald)])),
            systemd,
            ports,
        };
        if let (Some(_), None, Some(port)) = (&service.health.http, &service.health.port, service.ports.keys().next()) {
            service.health.port = (service.ports.len() == 1).then(|| port.clone());
        }
        section.finish();
        Some(service)
    }
}

/// A port that a service listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PortAsWritten", into = "PortAsWritten")]
pub enum Port {
    /// One of two that each target keeps for this service, so that old and new can run beside each other.
    Auto,
    /// This one, 1 to 65535.
    Fixed(u16),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PortAsWritten {
    Number(u16),
    Word(String),
}

impl TryFrom<PortAsWritten> for Port {
    type Error = String;

    fn try_from(written: PortAsWritten) -> Result<Self, String> {
        match written {
            PortAsWritten::Number(number) if number > 0 => Ok(Self::Fixed(number)),
            PortAsWritten::Word(word) if word == "auto" => Ok(Self::Auto),
            _ => Err("a port is \"auto\" or a number from 1 to 65535".to_owned()),
        }
    }
}

impl From<Port> for PortAsWritten {
    fn from(port: Port) -> Self {
        match port {
            Port::Auto => Self::Word("auto".to_owned()),
            Port::Fixed(number) => Self::Number(number),
        }
    }
}

impl Port {
    fn read(value: &Value<'_>) -> Option<Self> {
        if value.is_text() {
            value.word(&[("auto", Self::Auto)])
        } else {
            value.integer(1, 65535).map(|number| Self::Fixed(number as u16))
        }
    }
}

/// How a new instance takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// New beside old, then switch.
    Beside,
    /// Old stops, then new starts.
    InPlace,
}

/// How a secret reaches a service. What holds it is an environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "SecretAsWritten", into = "SecretAsWritten")]
pub enum SecretUse {
    /// The variable is the secret of this name.
    Value(String),
    /// The variable is the path of a file that holds the secret of this name.
    File(String),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum SecretAsWritten {
    Name(String),
    File { file: String },
}

impl From<SecretAsWritten> for SecretUse {
    fn from(written: SecretAsWritten) -> Self {
        match written {
            SecretAsWritten::Name(name) => Self::Value(name),
            SecretAsWritten::File { file } => Self::File(file),
        }
    }
}

impl From<SecretUse> for SecretAsWritten {
    fn from(secret: SecretUse) -> Self {
        match secret {
            SecretUse::Value(name) => Self::Name(name),
            SecretUse::File(file) => Self::File { file },
        }
    }
}

impl SecretUse {
    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        if !value.is_table() {
            return read_secret_name(value).map(Self::Value);
        }
        let section = value.section()?;
        let name = section.required("file", r#""tls_key""#, |value| read_secret_name(&value));
        section.finish();
        Some(Self::File(name))
    }

    /// The name of the secret.
    pub fn name(&self) -> &str {
        match self {
            SecretUse::Value(name) | SecretUse::File(name) => name,
        }
    }
}

/// What a service may use at most; without a limit, what the target has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Limits {
    /// Memory, such as "2GiB" (4MiB to 16TiB).
    #[serde(with = "exact_size_if_any")]
    #[schemars(with = "schema::SizeText")]
    pub memory: Option<ByteSize>,
    /// CPUs, such as 2.0 (0.01 to 1024).
    #[schemars(with = "schema::Number")]
    pub cpu: Option<Thousandths>,
    /// Open files (16 to 1048576).
    #[schemars(with = "u64")]
    pub nofile: Option<u64>,
    /// Processes and threads (1 to 1048576).
    #[schemars(with = "u64")]
    pub pids: Option<u64>,
}

impl Limits {
    fn read(value: Value<'_>) -> Option<Self> {
        let section = value.section()?;
        let limits = Self {
            memory: section.opt("memory", |value| value.size(ByteSize(4 << 20), ByteSize(16 << 40))),
            cpu: section.opt("cpu", |value| value.decimal(Thousandths(10), Thousandths::whole(1024))),
            nofile: section.opt("nofile", |value| value.integer(16, 1 << 20)),
            pids: section.opt("pids", |value| value.integer(1, 1 << 20)),
        };
        section.finish();
        Some(limits)
    }
}

/// How an instance is stopped: no new traffic for `drain`, then the signal, then after `timeout` SIGKILL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Stop {
    /// The signal that asks it to end.
    pub signal: Signal,
    /// How long it may take to end, such as "30s" (100ms to 1h).
    #[schemars(with = "schema::DurationText")]
    pub timeout: Millis,
    /// How long it goes on serving after it is out of the gateways' tables (0s to 1h). Default: 0s for a service without ports.
    #[schemars(with = "schema::DurationText")]
    pub drain: Millis,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: Signal::Term, timeout: Millis::from_secs(30), drain: Millis::from_secs(10) }
    }
}

impl Stop {
    fn read(value: Value<'_>, drain: Millis) -> Option<Self> {
        let section = value.section()?;
        let default = Self::default();
        let hour = Millis::from_secs(3600);
        let stop = Self {
            signal: section.or("signal", default.signal, |value| value.word(&Signal::WORDS)),
            timeout: section.or("timeout", default.timeout, |value| value.duration(Millis(100), hour)),
            drain: section.or("drain", drain, |value| value.duration(Millis(0), hour)),
        };
        section.finish();
        Some(stop)
    }
}

/// A signal that asks a process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)] // The names are those of signal(7).
pub enum Signal {
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
    Winch,
    Kill,
}

impl Signal {
    const WORDS: [(&'static str, Signal); 8] = [
        ("TERM", Signal::Term),
        ("INT", Signal::Int),
        ("QUIT", Signal::Quit),
        ("HUP", Signal::Hup),
        ("USR1", Signal::Usr1),
        ("USR2", Signal::Usr2),
        ("WINCH", Signal::Winch),
        ("KILL", Signal::Kill),
    ];

    /// Its name without `SIG`.
    pub fn name(self) -> &'static str {
        Self::WORDS.iter().find(|(_, signal)| *signal == self).map_or("TERM", |(name, _)| name)
    }
}

/// Where a service's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Log {
    /// A file that the agent keeps and rotates.
    File,
    /// The target's journal.
    Journald,
}

/// A program and its arguments.
pub(super) fn read_command(value: &Value<'_>) -> Option<Vec<String>> {
    let items = value.items(r#"a list of texts such as ["bin/api", "--verbose"]"#, WORDS_MAX)?;
    let Some(program) = items.first() else {
        value.report(
            "bad_value",
            format!("`{}` names no program", value.path),
            Some(r#"write one such as ["bin/api"]"#.to_owned()),
        );
        return None;
    };
    program.text(r#""bin/api""#)?;
    let count = items.len();
    let words: Vec<String> = items.iter().filter_map(Value::any_text).collect();
    (words.len() == count).then_some(words)
}

fn read_user(value: Value<'_>) -> Option<String> {
    let user = value.text(r#""shop""#)?;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if user.len() <= 32 && user.chars().all(is_allowed) && !user.starts_with('-') {
        return Some(user);
    }
    value.report("bad_value", format!("`{user}` is not a user's name"), None);
    None
}

fn read_folders(value: Value<'_>) -> Option<Vec<String>> {
    let mut folders = Vec::new();
    for item in value.items(r#"a list of folders such as ["/var/lib/shop"]"#, DATA_MAX)? {
        let folder = item.text(r#""/var/lib/shop""#)?;
        if folder.len() < 2 || !folder.starts_with('/') || folder.split('/').any(|part| part == "..") {
            item.report(
                "bad_value",
                format!("`{folder}` is not an absolute folder"),
                Some("write one such as \"/var/lib/shop\"".to_owned()),
            );
            return None;
        }
        folders.push(folder);
    }
    Some(folders)
}
