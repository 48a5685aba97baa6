//! The file as a whole: its sections, how it is parsed, and how state keeps it. Knows nothing of single keys.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use toml::de::DeTable;

use crate::ids::{EnvironmentName, PortName, ServiceName};
use crate::pipeline_file::{
    build::{Build, Cache, PATHS_MAX, Package, Test},
    check,
    deploy::Deploy,
    diagnostic::Diagnostic,
    paths::{PathFilter, read_globs},
    read::{DIAGNOSTICS_MAX, Marks, Place, Reader, Section, Source, Value},
    service::Service,
    task::{EnvironmentSettings, Task},
    unsupported,
};

/// The largest file that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// The most services of one pipeline.
const SERVICES_MAX: usize = 64;
/// The most tasks.
const TASKS_MAX: usize = 64;
/// The most environments.
const ENVIRONMENTS_MAX: usize = 64;
/// The most caches.
const CACHES_MAX: usize = 16;

/// A parsed `swell.toml`: how a repository is built, run and rolled out.
///
/// In JSON it has the shape of the file. In MessagePack it is one binary value that holds named fields, whatever the
/// encoding around it, so that a version that knows fewer fields, or more, can read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default, remote = "Self")]
#[schemars(deny_unknown_fields)]
pub struct PipelineFile {
    /// Globs of the files whose change concerns this pipeline; without them, every file.
    pub paths: Vec<String>,
    /// Globs of files whose change alone does not concern it.
    pub paths_ignore: Vec<String>,
    /// The first phase, and what holds for all phases.
    pub build: Build,
    /// Files kept from one build to the next.
    pub cache: Vec<Cache>,
    /// The second phase; skipped where it is not given.
    #[schemars(with = "Test")]
    pub test: Option<Test>,
    /// The third phase; skipped where it is not given.
    #[schemars(with = "Package")]
    pub package: Option<Package>,
    /// What runs on each target.
    #[schemars(with = "BTreeMap<String, Service>")]
    pub service: BTreeMap<ServiceName, Service>,
    /// What runs once around a rollout.
    pub task: BTreeMap<String, Task>,
    /// What is different in an environment.
    #[schemars(with = "BTreeMap<String, EnvironmentSettings>")]
    pub environment: BTreeMap<EnvironmentName, EnvironmentSettings>,
    /// How an environment is moved to a release.
    #[schemars(with = "BTreeMap<String, Deploy>")]
    pub deploy: BTreeMap<EnvironmentName, Deploy>,
    #[serde(skip)]
    pub(super) marks: Marks,
}

impl PipelineFile {
    /// Reads a file, or says everything that is wrong with it: in the order of its lines, at least one and at most 100.
    ///
    /// Syntax comes first: while the text is not TOML, only that is reported. What this version cannot carry out yet is
    /// no error here: see [`PipelineFile::unsupported`].
    pub fn parse(text: &str) -> Result<Self, Vec<Diagnostic>> {
        if text.len() > FILE_BYTES_MAX {
            let message = format!("the file has {} bytes, at most {FILE_BYTES_MAX} are read", text.len());
            return Err(vec![Marks::default().diagnostic("", "too_large", message, None)]);
        }
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let source = Source::new(text);
            return Err(errors.iter().take(DIAGNOSTICS_MAX).map(|error| syntax_error(&source, error)).collect());
        }
        let reader = Reader::new(text);
        let mut file = Self::read(&Section::root(&reader, table.get_ref()));
        let (mut found, marks) = reader.into_parts();
        file.marks = marks;
        check::check(&file, &mut found);
        if found.is_empty() {
            return Ok(file);
        }
        found.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
        found.truncate(DIAGNOSTICS_MAX);
        Err(found)
    }

    fn read(root: &Section<'_>) -> Self {
        let caches = |value: Value<'_>| {
            let items = value.items("a list of tables: write `[[cache]]`", CACHES_MAX)?;
            Some(items.into_iter().filter_map(Cache::read).collect())
        };
        let file = Self {
            paths: root.or("paths", Vec::new(), |value| read_globs(&value, PATHS_MAX)),
            paths_ignore: root.or("paths_ignore", Vec::new(), |value| read_globs(&value, PATHS_MAX)),
            build: root.or("build", Build::default(), Build::read),
            cache: root.or("cache", Vec::new(), caches),
            test: root.opt("test", Test::read),
            package: root.opt("package", Package::read),
            service: read_all(root, "service", SERVICES_MAX, Service::read),
            task: read_all(root, "task", TASKS_MAX, Task::read)
                .into_iter()
                .map(|(name, task): (PortName, _)| (name.to_string(), task))
                .collect(),
            environment: read_all(root, "environment", ENVIRONMENTS_MAX, EnvironmentSettings::read),
            deploy: read_all(root, "deploy", ENVIRONMENTS_MAX, Deploy::read),
            marks: Marks::default(),
        };
        root.report_unknown();
        file
    }

    /// What this version understands but does not carry out yet, in the order of the lines. A server refuses such a
    /// file, so that nothing in it is silently left out. Lines are known only for a file that was just parsed.
    pub fn unsupported(&self) -> Vec<Diagnostic> {
        unsupported::unsupported(self)
    }

    /// Which pushes concern this pipeline.
    pub fn path_filter(&self) -> PathFilter {
        PathFilter::new(&self.paths, &self.paths_ignore)
    }

    /// How `environment` is moved to a release: its section, or the defaults.
    pub fn deploy_to(&self, environment: &EnvironmentName) -> Deploy {
        self.deploy.get(environment).cloned().unwrap_or_default()
    }

    /// The variables of `service` in `environment`, `${…}` not yet filled in; empty for a service that is not defined.
    pub fn env_of(&self, service: &ServiceName, environment: &EnvironmentName) -> BTreeMap<String, String> {
        let mut env = self.service.get(service).map(|service| service.env.clone()).unwrap_or_default();
        if let Some(settings) = self.environment.get(environment) {
            env.extend(settings.env.clone());
        }
        env
    }
}

/// The sections `[kind.NAME]`.
fn read_all<K: std::str::FromStr<Err: std::fmt::Display> + Ord, T>(
    root: &Section<'_>,
    kind: &str,
    most: usize,
    read: impl Fn(Value<'_>) -> Option<T>,
) -> BTreeMap<K, T> {
    let entries = root.opt(kind, |value| value.entries::<K>(most)).unwrap_or_default();
    entries.into_iter().filter_map(|(name, value)| Some((name, read(value)?))).collect()
}

fn syntax_error(source: &Source<'_>, error: &toml::de::Error) -> Diagnostic {
    let Place { line, column, end_column } = source.place(error.span().unwrap_or(0..0));
    let message = format!("this is not TOML: {}", error.message().lines().collect::<Vec<_>>().join(", "));
    Diagnostic { line, column, end_column, path: String::new(), message, help: None, code: "syntax" }
}

impl Serialize for PipelineFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return Self::serialize(self, serializer);
        }
        let mut bytes = Vec::new();
        Self::serialize(self, &mut rmp_serde::Serializer::new(&mut bytes).with_struct_map())
            .map_err(serde::ser::Error::custom)?;
        serializer.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for PipelineFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return Self::deserialize(deserializer);
        }
        deserializer.deserialize_bytes(PackedVisitor)
    }
}

struct PackedVisitor;

impl de::Visitor<'_> for PackedVisitor {
    type Value = PipelineFile;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a packed pipeline file")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<PipelineFile, E> {
        PipelineFile::deserialize(&mut rmp_serde::Deserializer::from_read_ref(bytes)).map_err(E::custom)
    }
}
