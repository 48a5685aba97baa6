//! `[build]`, `[[cache]]`, `[test]`, `[package]`: what a runner does with a commit. Knows nothing of how it is isolated.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pipeline_file::{
    quantities::{Thousandths, exact_size},
    read::{Section, Value},
    schema,
};
use crate::units::{ByteSize, Millis};

/// The most secrets that one phase or service may name.
pub(super) const SECRETS_MAX: usize = 64;
/// The most variables of one environment.
const ENV_MAX: usize = 256;
/// The most hosts of a network allow list.
const HOSTS_MAX: usize = 64;
/// The most paths of one list of paths.
pub(super) const PATHS_MAX: usize = 256;
/// A week: no build takes longer.
const TIMEOUT_MAX: Millis = Millis::from_secs(7 * 24 * 3600);

/// `[build]`: the first phase, and what holds for all phases of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Build {
    /// The root file system that every phase runs on.
    pub image: Image,
    /// The shell script of the build phase; without it the phase is skipped.
    #[schemars(with = "String")]
    pub run: Option<String>,
    /// Environment variables of every phase.
    pub env: BTreeMap<String, String>,
    /// CPUs of every phase, such as 2.0 (0.1 to 1024).
    #[schemars(with = "schema::Number")]
    pub cpu: Thousandths,
    /// Memory of every phase, such as "4GiB" (16MiB to 16TiB).
    #[serde(with = "exact_size")]
    #[schemars(with = "schema::SizeText")]
    pub memory: ByteSize,
    /// Size of the workspace, such as "20GiB" (16MiB to 64TiB).
    #[serde(with = "exact_size")]
    #[schemars(with = "schema::SizeText")]
    pub disk: ByteSize,
    /// How long all phases of an attempt may take together, such as "30m" (1s to 7d).
    #[schemars(with = "schema::DurationText")]
    pub timeout: Millis,
    /// What a phase can reach: "none", or a list of host:port.
    pub network: Network,
    /// Names of secrets given to the build phase as read-only files under /run/secrets.
    pub secrets: Vec<String>,
}

impl Default for Build {
    fn default() -> Self {
        Self {
            image: Image::Host,
            run: None,
            env: BTreeMap::new(),
            cpu: Thousandths::whole(1),
            memory: ByteSize(2 << 30),
            disk: ByteSize(10 << 30),
            timeout: Millis::from_secs(30 * 60),
            network: Network::None,
            secrets: Vec::new(),
        }
    }
}

impl Build {
    pub(super) fn read(value: Value<'_>) -> Option<Self> {
        let section = value.section()?;
        let default = Self::default();
        let build = Self {
            image: section.or("image", default.image, |value| value.text(r#""host""#).map(Image::from)),
            run: section.opt("run", |value| value.text(r#""make""#)),
            env: read_env(&section),
            cpu: section.or("cpu", default.cpu, |value| value.decimal(Thousandths(100), Thousandths::whole(1024))),
            memory: section.or("memory", default.memory, |value| value.size(ByteSize(16 << 20), ByteSize(16 << 40))),
            disk: section.or("disk", default.disk, |value| value.size(ByteSize(16 << 20), ByteSize(64 << 40))),
            timeout: section.or("timeout", default.timeout, |value| value.duration(Millis::from_secs(1), TIMEOUT_MAX)),
            network: section.or("network", default.network, Network::read),
            secrets: read_secret_names(&section),
        };
        section.finish();
        Some(build)
    }
}

/// Where a build's root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(from = "String", into = "String")]
pub enum Image {
    /// The runner's own system, read-only.
    #[default]
    Host,
    /// An imported OCI image, by name or by `sha256:` digest.
    Oci(String),
}

impl From<String> for Image {
    fn from(text: String) -> Self {
        if text == "host" { Self::Host } else { Self::Oci(text) }
    }
}

impl From<Image> for String {
    fn from(image: Image) -> Self {
        match image {
            Image::Host => "host".to_owned(),
            Image::Oci(name) => name,
        }
    }
}

/// What a phase can reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(try_from = "NetworkAsWritten", into = "NetworkAsWritten")]
pub enum Network {
    /// Nothing, not even the runner's loopback.
    #[default]
    None,
    /// These `host:port`, and nothing else.
    Allow(Vec<String>),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum NetworkAsWritten {
    Word(String),
    Hosts(Vec<String>),
}

impl TryFrom<NetworkAsWritten> for Network {
    type Error = String;

    fn try_from(written: NetworkAsWritten) -> Result<Self, String> {
        match written {
            NetworkAsWritten::Word(word) if word == "none" => Ok(Self::None),
            NetworkAsWritten::Word(word) => Err(format!("`{word}` is no network: write \"none\" or a list of host:port")),
            NetworkAsWritten::Hosts(hosts) => Ok(Self::Allow(hosts)),
        }
    }
}

impl From<Network> for NetworkAsWritten {
    fn from(network: Network) -> Self {
        match network {
            Network::None => Self::Word("none".to_owned()),
            Network::Allow(hosts) => Self::Hosts(hosts),
        }
    }
}

impl Network {
    fn read(value: Value<'_>) -> Option<Self> {
        if !value.is_list() {
            return value.word(&[("none", ())]).map(|()| Self::None);
        }
        let mut hosts = Vec::new();
        for item in value.items(r#""none" or a list of host:port"#, HOSTS_MAX)? {
            let text = item.text(r#""registry.example.com:443""#)?;
            let is_host =
                |host: &str| !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '@' | '*'));
            match text.rsplit_once(':') {
                Some((host, port)) if is_host(host) && port.parse().is_ok_and(|port: u16| port > 0) => hosts.push(text),
                _ => {
                    let help = Some("write a host name or address and a port, such as \"registry.example.com:443\"".to_owned());
                    item.report("bad_value", format!("`{text}` is not host:port"), help);
                    return None;
                }
            }
        }
        Some(if hosts.is_empty() { Self::None } else { Self::Allow(hosts) })
    }
}

/// `[[cache]]`: files kept from one build to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Cache {
    /// Files whose content decides which cache fits, such as lock files.
    pub key: Vec<String>,
    /// What is kept, relative to the workspace.
    pub paths: Vec<String>,
}

impl Cache {
    pub(super) fn read(value: Value<'_>) -> Option<Self> {
        let section = value.section()?;
        let paths = |value: Value<'_>| {
            let paths = read_relative_paths(&value, r#"["node_modules"]"#)?;
            if paths.is_empty() {
                value.report("bad_value", format!("`{}` names no file", value.path), None);
            }
            Some(paths)
        };
        let cache = Self {
            key: section.required("key", r#"["package-lock.json"]"#, paths),
            paths: section.required("paths", r#"["node_modules"]"#, paths),
        };
        section.finish();
        Some(cache)
    }
}

/// `[test]`: the second phase; failing it fails the build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Test {
    /// The shell script of the phase.
    pub run: String,
    /// Globs of JUnit files, relative to the workspace.
    #[serde(default)]
    pub reports: Vec<String>,
    /// Environment variables besides those of `[build]`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Names of secrets given to this phase as read-only files under /run/secrets.
    #[serde(default)]
    pub secrets: Vec<String>,
}

impl Test {
    pub(super) fn read(value: Value<'_>) -> Option<Self> {
        let section = value.section()?;
        let test = Self {
            run: section.required("run", r#""make check""#, |value| value.text(r#""make check""#)),
            reports: section.or("reports", Vec::new(), |value| read_relative_paths(&value, r#"["out/*.xml"]"#)),
            env: read_env(&section),
            secrets: read_secret_names(&section),
        };
        section.finish();
        Some(test)
    }
}

/// `[package]`: the third phase; what it leaves under `$OUT` is the artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Package {
    /// The shell script of the phase.
    pub run: String,
    /// Environment variables besides those of `[build]`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Names of secrets given to this phase as read-only files under /run/secrets.
    #[serde(default)]
    pub secrets: Vec<String>,
}

impl Package {
    pub(super) fn read(value: Value<'_>) -> Option<Self> {
        let section = value.section()?;
        let example = r#""make install prefix=$OUT""#;
        let package = Self {
            run: section.required("run", example, |value| value.text(example)),
            env: read_env(&section),
            secrets: read_secret_names(&section),
        };
        section.finish();
        Some(package)
    }
}

/// The name of an environment variable, as POSIX has it.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct VariableName(pub String);

impl std::str::FromStr for VariableName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_start = |c: char| c.is_ascii_alphabetic() || c == '_';
        let is_name = text.starts_with(is_start) && text.len() <= 128 && text.chars().all(|c| is_start(c) || c.is_ascii_digit());
        let error = || format!("`{text}` is not a variable's name: letters, digits and `_`, not beginning with a digit");
        if is_name { Ok(Self(text.to_owned())) } else { Err(error()) }
    }
}

/// `env = { NAME = "value" }`.
pub(super) fn read_env(section: &Section<'_>) -> BTreeMap<String, String> {
    let entries = section.opt("env", |value| value.entries::<VariableName>(ENV_MAX)).unwrap_or_default();
    entries.into_iter().filter_map(|(name, value)| Some((name.0, value.any_text()?))).collect()
}

/// The name of a secret, checked like all names.
pub(super) fn read_secret_name(value: &Value<'_>) -> Option<String> {
    let name = value.text(r#""npm_token""#)?;
    if name.parse::<crate::ids::PortName>().is_ok() {
        return Some(name);
    }
    let message = format!("`{name}` is not a secret's name: up to 63 of `a-z 0-9 - _ .`, beginning with a letter or a digit");
    let help = "only the name of a secret stands here; its value is given with `swell secret set`";
    value.report("bad_name", message, Some(help.to_owned()));
    None
}

/// `secrets = ["name"]`.
fn read_secret_names(section: &Section<'_>) -> Vec<String> {
    let items = section.opt("secrets", |value| value.items(r#"a list of names such as ["npm_token"]"#, SECRETS_MAX));
    items.unwrap_or_default().iter().filter_map(read_secret_name).collect()
}

/// Paths or globs inside the workspace.
fn read_relative_paths(value: &Value<'_>, example: &str) -> Option<Vec<String>> {
    let items = value.items(&format!("a list of paths such as {example}"), PATHS_MAX)?;
    let mut paths = Vec::new();
    for item in items {
        let path = item.text(example)?;
        if path.starts_with('/') || path.split('/').any(|part| part == "..") {
            item.report(
                "bad_value",
                format!("`{path}` leads out of the workspace"),
                Some("write it relative to the workspace".into()),
            );
            return None;
        }
        paths.push(path);
    }
    Some(paths)
}
