//! Settings of the client, each with its origin: flag, `SWELL_*`, project file, user file, system file, default.
//! Knows nothing of how they are used.
//!
//! The project file is `.swell.toml`, searched from the working folder up to the repository's root. It is not `swell.toml`, which
//! describes how the project is built.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use super::{
    failure::{Failure, Result, file_error},
    globals::Globals,
    output::ColorChoice,
};
use swell_model::units::Millis;

/// The name of the project file.
pub const PROJECT_FILE: &str = ".swell.toml";
/// The system's file.
const SYSTEM_FILE: &str = "/etc/swell/config.toml";
/// The largest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Every setting of the client.
pub const KEYS: [Key; 6] = [
    Key { name: "addr", variable: "SWELL_ADDR", default: Some("http://127.0.0.1:7400"), about: "address of the server" },
    Key { name: "token_file", variable: "SWELL_TOKEN_FILE", default: None, about: "file that holds the token" },
    Key { name: "user", variable: "SWELL_USER", default: None, about: "your name in the event log" },
    Key { name: "environment", variable: "SWELL_ENVIRONMENT", default: None, about: "environment used without --env" },
    Key { name: "color", variable: "SWELL_COLOR", default: Some("auto"), about: "auto, always or never; NO_COLOR means never" },
    Key {
        name: "request_timeout",
        variable: "SWELL_REQUEST_TIMEOUT",
        default: Some("40s"),
        about: "how long to wait for an answer of the server",
    },
];

/// A setting: its names, default and description.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The key in configuration files.
    pub name: &'static str,
    /// The environment variable.
    pub variable: &'static str,
    pub default: Option<&'static str>,
    /// Description for `swell config show`.
    pub about: &'static str,
}

/// The source of a value, highest precedence first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Flag(&'static str),
    Variable(&'static str),
    Project(PathBuf),
    /// The user's file, or the one that `--config` or SWELL_CONFIG names.
    User(PathBuf),
    System(PathBuf),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Project(path) => write!(f, "project file {}", path.display()),
            Self::User(path) => write!(f, "user file {}", path.display()),
            Self::System(path) => write!(f, "system file {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A setting's value and its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub key: &'static str,
    /// The value as written; none where neither a source nor a default gives one.
    pub value: Option<String>,
    pub origin: Origin,
}

/// The value of every setting.
#[derive(Debug, Clone)]
pub struct Settings(Vec<Setting>);

/// The sources of settings, so that tests need not change the process.
pub struct Sources<'a> {
    pub var: &'a dyn Fn(&str) -> Option<String>,
    /// Where the search for the project file begins.
    pub folder: &'a Path,
    pub system_file: &'a Path,
}

impl Settings {
    /// Reads the sources of this process.
    pub fn load(globals: &Globals) -> Result<Self> {
        let folder = std::env::current_dir().map_err(|error| file_error("find", Path::new("."), &error))?;
        let var = |name: &str| std::env::var(name).ok();
        Self::from_sources(globals, &Sources { var: &var, folder: &folder, system_file: Path::new(SYSTEM_FILE) })
    }

    /// Reads the settings from flags, variables and files; the first of these that has a value wins.
    pub fn from_sources(globals: &Globals, sources: &Sources<'_>) -> Result<Self> {
        let files = files(globals, sources)?;
        let setting = |key: &Key| {
            let flag = flag(globals, key.name);
            let variable = (sources.var)(key.variable).filter(|value| !value.is_empty());
            let from_file = files.iter().find_map(|(origin, values)| Some((values.get(key.name)?.clone(), origin.clone())));
            let (value, origin) = match (flag, variable, from_file) {
                (Some((flag, value)), ..) => (Some(value), Origin::Flag(flag)),
                (None, Some(value), _) => (Some(value), Origin::Variable(key.variable)),
                (None, None, Some((value, origin))) => (Some(value), origin),
                (None, None, None) => (key.default.map(str::to_owned), Origin::Default),
            };
            Setting { key: key.name, value, origin }
        };
        let settings = Self(KEYS.iter().map(setting).collect());
        settings.check()?;
        Ok(settings)
    }

    /// All settings, in the order of [`KEYS`].
    pub fn all(&self) -> &[Setting] {
        &self.0
    }

    /// The setting with this key.
    pub fn get(&self, key: &str) -> Option<&Setting> {
        self.0.iter().find(|setting| setting.key == key)
    }

    /// The value of the setting with this key.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.get(key)?.value.as_deref()
    }

    /// The setting `color`.
    pub fn color(&self) -> ColorChoice {
        self.value("color").and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// The setting `request_timeout`.
    pub fn request_timeout(&self) -> Millis {
        self.value("request_timeout").and_then(|text| text.parse().ok()).unwrap_or(Millis::from_secs(40))
    }

    fn check(&self) -> Result<()> {
        let wrong = |setting: &Setting, why: String| {
            let shown = setting.value.as_deref().unwrap_or_default();
            Failure::usage(format!("`{}` is `{shown}` ({}): {why}", setting.key, setting.origin))
                .hint("`swell config show --origin` lists all settings")
        };
        for setting in &self.0 {
            let Some(value) = setting.value.as_deref() else { continue };
            match setting.key {
                "addr" => check_addr(value).map_err(|why| wrong(setting, why))?,
                "color" => drop(value.parse::<ColorChoice>().map_err(|why| wrong(setting, why))?),
                "request_timeout" => drop(value.parse::<Millis>().map_err(|error| wrong(setting, error.to_string()))?),
                _ => {}
            }
        }
        Ok(())
    }
}

fn check_addr(text: &str) -> Result<(), String> {
    match reqwest::Url::parse(text) {
        Ok(url) if url.scheme() == "http" && url.has_host() => Ok(()),
        Ok(url) if url.scheme() == "https" => Err("this version supports only http://; use a tunnel for TLS".to_owned()),
        _ => Err("write an address such as http://127.0.0.1:7400".to_owned()),
    }
}

fn flag(globals: &Globals, key: &str) -> Option<(&'static str, String)> {
    match key {
        "addr" => Some(("--addr", globals.addr.clone()?)),
        "token_file" => Some(("--token-file", globals.token_file.as_ref()?.display().to_string())),
        "color" => Some(("--color", globals.color?.to_string())),
        _ => None,
    }
}

type Values = BTreeMap<String, String>;

/// The files that exist, highest precedence first. A file named by `--config` must exist.
fn files(globals: &Globals, sources: &Sources<'_>) -> Result<Vec<(Origin, Values)>> {
    let mut files = Vec::new();
    if let Some((path, values)) = project_file(sources.folder)? {
        if values.contains_key("token_file") {
            let detail = format!("`{}` sets `token_file`, which a project must not choose", path.display());
            return Err(Failure::usage(detail).hint("move `token_file` to your user configuration file"));
        }
        files.push((Origin::Project(path), values));
    }
    let named = globals.config_file.clone().or_else(|| (sources.var)("SWELL_CONFIG").map(PathBuf::from));
    match named {
        Some(path) => {
            let values = read(&path)?.ok_or_else(|| missing(&path))?;
            files.push((Origin::User(path), values));
        }
        None => {
            let user_file = user_folder(sources.var).map(|folder| folder.join("config.toml"));
            if let Some(path) = user_file
                && let Some(values) = read(&path)?
            {
                files.push((Origin::User(path), values));
            }
        }
    }
    if let Some(values) = read(sources.system_file)? {
        files.push((Origin::System(sources.system_file.to_owned()), values));
    }
    Ok(files)
}

/// The folder of the user's files: `$XDG_CONFIG_HOME/swell`, else `~/.config/swell`.
pub fn user_folder(var: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let absolute = |name: &str| var(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")))?;
    Some(base.join("swell"))
}

/// The nearest project file from `folder` up to the root of the repository (where `.git` is).
fn project_file(folder: &Path) -> Result<Option<(PathBuf, Values)>> {
    for folder in folder.ancestors() {
        let path = folder.join(PROJECT_FILE);
        if let Some(values) = read(&path)? {
            return Ok(Some((path, values)));
        }
        if folder.join(".git").exists() {
            break;
        }
    }
    Ok(None)
}

/// The failure for a named file that does not exist; suggests a file beside it with a similar name.
pub(super) fn missing(path: &Path) -> Failure {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let failure = Failure::new(super::Exit::Usage, "file", format!("file `{}` does not exist", path.display()));
    match super::human::closest(&name, beside) {
        Some(meant) => failure.hint(format!("did you mean `{}`?", folder.join(meant).display())),
        None => failure.hint("check the path"),
    }
}

fn read(path: &Path) -> Result<Option<Values>> {
    read_text(path)?.map(|text| parse(path, &text)).transpose()
}

/// The text of a file; none if it does not exist.
pub(super) fn read_text(path: &Path) -> Result<Option<String>> {
    let size = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(file_error("read", path, &error)),
    };
    if size > FILE_BYTES_MAX {
        return Err(Failure::usage(format!(
            "`{}` has {size} bytes; a configuration file has at most {FILE_BYTES_MAX}",
            path.display()
        )));
    }
    fs::read_to_string(path).map(Some).map_err(|error| file_error("read", path, &error))
}

/// The failure for wrong content of a configuration file.
pub(super) fn wrong(path: &Path, detail: impl fmt::Display) -> Failure {
    Failure::new(super::Exit::Usage, "configuration", format!("{}: {detail}", path.display()))
}

/// The failure for an unknown key; suggests the most similar of `names`.
pub(super) fn unknown_key(path: &Path, key: &str, names: &[String]) -> Failure {
    let hint = match super::human::closest(key, names.iter().cloned()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("the keys are {}", names.join(", ")),
    };
    wrong(path, format!("unknown key `{key}`")).hint(hint)
}

/// Parses a file's text as TOML.
pub(super) fn table(path: &Path, text: &str) -> Result<toml::Table> {
    text.parse().map_err(|error: toml::de::Error| wrong(path, error.to_string().trim_end()))
}

fn parse(path: &Path, text: &str) -> Result<Values> {
    let mut values = Values::new();
    for (name, value) in table(path, text)? {
        let names = KEYS.map(|key| key.name.to_owned());
        if !names.contains(&name) {
            return Err(unknown_key(path, &name, &names));
        }
        let toml::Value::String(value) = value else {
            return Err(wrong(path, format!("`{name}` must be a string")).hint(format!("write `{name} = \"…\"`")));
        };
        values.insert(name, value);
    }
    Ok(values)
}

#[cfg(test)]
mod tests;
