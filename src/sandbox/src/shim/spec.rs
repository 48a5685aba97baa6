//! What a shim is asked to run: `spec.json`. Plain data; must not know how it is done.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::{cgroup::Limits, spool::OutputPolicy};
use swell_model::units::Millis;

/// The spec's name in a shim's folder.
pub const SPEC_FILE: &str = "spec.json";

/// One command to run, in what surroundings, within which bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShimSpec {
    /// Program and arguments. The program is looked up in the `PATH` of `env` unless it contains a slash.
    pub command: Vec<String>,
    /// The whole environment: nothing is inherited. `PATH` and `HOME` get defaults where they are missing.
    pub env: BTreeMap<String, String>,
    /// Working directory, absolute; inside the container for containers.
    pub cwd: PathBuf,
    /// How it is kept apart from the rest of the machine.
    pub kind: Isolation,
    /// Resource limits. `Bare` obeys `nofile` only.
    #[serde(default)]
    pub limits: Limits,
    /// After this long everything is killed and the record says `timed_out`.
    #[serde(default)]
    pub time_limit: Option<Millis>,
    /// How it is asked to end.
    #[serde(default)]
    pub stop: StopPolicy,
    /// How much output is kept.
    pub output: OutputPolicy,
    /// Control group, absolute, the same in every hierarchy: `/groundswell/builds/b12-1-build`. Not used by `Bare`. Nobody
    /// else may use it: at the end everything in it is killed and it is removed.
    pub cgroup: String,
}

/// How a command is kept apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// An OCI container: own user, mount, pid, IPC, UTS, cgroup and network namespaces, no capabilities, seccomp. For builds.
    Container(ContainerSpec),
    /// A plain process in its own control group, as its own user. For instances of services.
    Process(ProcessSpec),
    /// A plain process in its own session and nothing else, for `swell dev` where a machine forbids the rest.
    Bare,
}

/// The container around a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// `host`: this machine's own `/usr` and what belongs to it, read-only. The only image so far.
    #[serde(default = "host_image")]
    pub image: String,
    /// Folders and files of the machine that are seen inside. The workspace is one of them, at `/workspace`.
    pub binds: Vec<Bind>,
    /// The machine's user and group id that root in the container really is; 65,536 ids from there on are used.
    #[serde(default = "default_id_base")]
    pub id_base: u32,
}

fn host_image() -> String {
    "host".to_owned()
}

fn default_id_base() -> u32 {
    ContainerSpec::ID_BASE
}

impl ContainerSpec {
    /// Where the container's ids begin on the machine, unless set otherwise.
    pub const ID_BASE: u32 = 100_000;
    /// How many ids a container has.
    pub const ID_COUNT: u32 = 65_536;

    /// The host's system with `workspace` at `/workspace`, writable and owned by the container's root.
    pub fn host(workspace: impl Into<PathBuf>) -> Self {
        let workspace =
            Bind { source: workspace.into(), destination: "/workspace".into(), read_only: false, owned_by_container: true };
        Self { image: host_image(), binds: vec![workspace], id_base: Self::ID_BASE }
    }
}

/// A folder or file of the machine, seen inside a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// Absolute path on the machine. Its parents need not be readable by the container's root.
    pub source: PathBuf,
    /// Absolute path inside.
    pub destination: PathBuf,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Hand everything in it to the container's root first, without following links. Only for folders that are given up to
    /// the container: a workspace, an output folder.
    #[serde(default)]
    pub owned_by_container: bool,
}

/// The surroundings of a plain process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessSpec {
    /// The user to become, with that user's groups; none: who the shim is.
    pub user: Option<String>,
}

/// How a command is asked to end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopPolicy {
    /// Sent to the command itself, not to its children: `TERM`, `SIGINT` … In a container the command is process 1, for which
    /// the kernel ignores signals that it does not handle.
    pub signal: String,
    /// After this long everything is killed.
    pub timeout: Millis,
}

impl Default for StopPolicy {
    fn default() -> Self {
        Self { signal: "TERM".to_owned(), timeout: Millis::from_secs(10) }
    }
}

impl StopPolicy {
    /// The signal as the system names it.
    pub fn signal(&self) -> Result<Signal, SpecError> {
        let name = self.signal.trim().to_ascii_uppercase();
        let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
        name.parse().map_err(|_| SpecError::Invalid(format!("`{}` is not a signal such as `TERM` or `INT`", self.signal)))
    }
}

/// Why a spec cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// It could not be read.
    #[error("reading {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The file is not a spec as this program writes it.
    #[error("parsing {}", .0.display())]
    Parse(PathBuf, #[source] serde_json::Error),
    /// It asks for what cannot be.
    #[error("{0}")]
    Invalid(String),
}

impl ShimSpec {
    /// Reads and checks `dir/spec.json`.
    pub fn read(dir: &Path) -> Result<Self, SpecError> {
        let path = dir.join(SPEC_FILE);
        let bytes = fs::read(&path).map_err(|source| SpecError::Read(path.clone(), source))?;
        let spec: Self = serde_json::from_slice(&bytes).map_err(|source| SpecError::Parse(path, source))?;
        spec.check()?;
        Ok(spec)
    }

    /// Whether it can be run at all.
    pub fn check(&self) -> Result<(), SpecError> {
        let invalid = |text: String| Err(SpecError::Invalid(text));
        if self.command.first().is_none_or(String::is_empty) {
            return invalid("the command is empty".to_owned());
        }
        let texts = self.command.iter().chain(self.env.keys()).chain(self.env.values());
        if texts.into_iter().any(|text| text.contains('\0')) {
            return invalid("the command or its environment contains a zero byte".to_owned());
        }
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains('=')) {
            return invalid(format!("`{name}` is not the name of an environment variable"));
        }
        if !self.cwd.is_absolute() {
            return invalid(format!("the working directory {} is not absolute", self.cwd.display()));
        }
        if self.limits.cpu_cores.is_some_and(|cores| !(0.01..=100_000.0).contains(&cores)) {
            return invalid("the processor limit must be between 0.01 and 100,000 cores".to_owned());
        }
        if let Isolation::Container(container) = &self.kind {
            if container.image != "host" {
                return invalid(format!("image `{}` is not known here; the one image so far is `host`", container.image));
            }
            for bind in &container.binds {
                let plain = |path: &Path| path.is_absolute() && !path.components().any(|part| part.as_os_str() == "..");
                if !plain(&bind.source) || !plain(&bind.destination) || bind.destination == Path::new("/") {
                    let (from, to) = (bind.source.display(), bind.destination.display());
                    return invalid(format!("cannot bind {from} to {to}: both must be absolute, without `..`, and not `/`"));
                }
            }
            if container.id_base == 0 || container.id_base.checked_add(ContainerSpec::ID_COUNT).is_none() {
                return invalid(
                    "the container's ids must not begin at 0 (the machine's root) nor run over the last id".to_owned(),
                );
            }
        }
        self.stop.signal().map(|_| ())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec() -> ShimSpec {
        ShimSpec {
            command: vec!["true".into()],
            env: BTreeMap::new(),
            cwd: "/".into(),
            kind: Isolation::Container(ContainerSpec::host("/srv/w")),
            limits: Limits { memory_bytes: Some((4 << 30) + 1), cpu_cores: Some(0.5), pids: None, nofile: None },
            time_limit: Some(Millis(90_001)),
            stop: StopPolicy::default(),
            output: OutputPolicy::BUILD,
            cgroup: "/groundswell/t".into(),
        }
    }

    #[test]
    fn spec_is_read_back_exactly_and_unknown_key_is_refused() {
        let text = serde_json::to_string(&spec()).unwrap();
        assert_eq!(serde_json::from_str::<ShimSpec>(&text).unwrap(), spec());
        assert!(serde_json::from_str::<ShimSpec>(&text.replace("\"cwd\"", "\"cmd\"")).is_err());
    }

    #[test]
    fn spec_that_cannot_be_run_is_refused() {
        let broken: [fn(&mut ShimSpec); 7] = [
            |spec| spec.command.clear(),
            |spec| spec.cwd = "relative".into(),
            |spec| spec.stop.signal = "HELLO".into(),
            |spec| drop(spec.env.insert("A=B".into(), String::new())),
            |spec| spec.limits.cpu_cores = Some(f64::NAN),
            |spec| spec.kind = Isolation::Container(ContainerSpec { id_base: 0, ..ContainerSpec::host("/w") }),
            |spec| spec.kind = Isolation::Container(ContainerSpec::host("/srv/../etc")),
        ];
        for (index, change) in broken.iter().enumerate() {
            let mut spec = spec();
            assert!(spec.check().is_ok());
            change(&mut spec);
            assert!(spec.check().is_err(), "{index}");
        }
    }

    #[test]
    fn signal_is_parsed_with_and_without_prefix() {
        let signal = |text: &str| StopPolicy { signal: text.into(), ..StopPolicy::default() }.signal();
        assert_eq!(signal("TERM").unwrap(), Signal::SIGTERM);
        assert_eq!(signal("sigint").unwrap(), Signal::SIGINT);
    }
}
