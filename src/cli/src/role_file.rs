//! A role's configuration file: the names of its flags as keys, with `_` for `-`. Each value becomes the default of its flag, so
//! that flags and `SWELL_*` take precedence and clap validates all values alike. Knows nothing of how the settings are used.

use std::{
    any::TypeId,
    error::Error as _,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, Command, builder::Resettable};
use toml::Value;

use super::{
    config::{self, KEYS, missing, read_text, unknown_key, wrong},
    failure::{Failure, Result},
    globals::Globals,
    roles::{GATEWAY_TABLES, Tuning},
};

/// The folder of the roles' configuration files, named `ROLE.toml`.
pub const FOLDER: &str = "/etc/swell";

/// The sources of a role's settings, so that tests need not change the process.
pub struct RoleSources<'a> {
    pub var: &'a dyn Fn(&str) -> Option<String>,
    pub folder: &'a Path,
}

/// The parsed configuration file of a role.
pub struct RoleFile {
    path: PathBuf,
    table: toml::Table,
}

impl RoleFile {
    /// Reads the file named by `--config` or SWELL_CONFIG, which must exist, else `folder/ROLE.toml`, if it exists.
    pub fn read(role: &str, globals: &Globals, sources: &RoleSources<'_>) -> Result<Self> {
        let named = globals.config_file.clone().or_else(|| variable(sources, "SWELL_CONFIG").map(PathBuf::from));
        let is_named = named.is_some();
        let path = named.unwrap_or_else(|| sources.folder.join(format!("{role}.toml")));
        let table = match read_text(&path)? {
            Some(text) => config::table(&path, &text)?,
            None if is_named => return Err(missing(&path)),
            None => toml::Table::new(),
        };
        Ok(Self { path, table })
    }

    /// The command line with this file's values as defaults of `role`'s flags, and the settings that have no flag.
    pub fn apply(self, mut command: Command, role: &str, sources: &RoleSources<'_>) -> Result<(Command, Tuning)> {
        let flags = flags(&command, role);
        let tables: &[&str] = if role == "gateway" { &GATEWAY_TABLES } else { &[] };
        let beside = ["listen", "service"].into_iter().find(|key| self.table.contains_key(*key));
        if let Some(key) = beside.filter(|_| role == "gateway" && self.table.contains_key("listener")) {
            let failure = wrong(&self.path, format!("`{key}` and `[[listener]]` both set where the gateway listens"));
            return Err(failure.hint("remove one of them"));
        }
        let mut tuning = Tuning { file: self.path.clone(), keys: toml::Table::new() };
        for (key, value) in self.table {
            if tables.contains(&key.as_str()) {
                tuning.keys.insert(key, value);
                continue;
            }
            let Some(arg) = flags.iter().find(|arg| name(arg) == key) else {
                return Err(unknown(&self.path, role, &key, flags.iter().map(name).chain(tables.iter().map(|&t| t.to_owned()))));
            };
            let values =
                arguments(arg, &value).map_err(|(detail, hint)| wrong(&self.path, format!("`{key}` {detail}")).hint(hint))?;
            check(arg, &values).map_err(|why| {
                let mut about = format!("`{key}`: {}", arg.get_help().map(ToString::to_string).unwrap_or_default());
                if let [default, ..] = arg.get_default_values() {
                    about += &format!("; such as `{}`", default.to_string_lossy());
                }
                wrong(&self.path, format!("`{key}` is {}: {why}", quoted(&values))).hint(about)
            })?;
            // SWELL_TOKEN takes precedence over a token file named here.
            if values.is_empty() || (key == TOKEN_FILE && variable(sources, "SWELL_TOKEN").is_some()) {
                continue;
            }
            command = with_default(command, role, arg, values);
        }
        if let Some(file) = variable(sources, "SWELL_TOKEN_FILE") {
            command = command.mut_arg(TOKEN_FILE, |arg| arg.default_value(file));
        }
        Ok((command, tuning))
    }
}

/// The only global option that a role's file may set.
const TOKEN_FILE: &str = "token_file";

fn variable(sources: &RoleSources<'_>, name: &str) -> Option<String> {
    (sources.var)(name).filter(|value| !value.is_empty())
}

/// The flags that a file of `role` may set. Hidden flags are internal.
pub fn flags(command: &Command, role: &str) -> Vec<Arg> {
    let own = command.find_subcommand(role).into_iter().flat_map(Command::get_arguments);
    // A server owns the tokens and sends none.
    let shared = command.get_arguments().filter(|arg| role != "server" && arg.get_id() == TOKEN_FILE);
    own.chain(shared).filter(|arg| !arg.is_hide_set() && arg.get_long().is_some()).cloned().collect()
}

/// The key of a flag in configuration files.
pub fn name(arg: &Arg) -> String {
    arg.get_long().unwrap_or_default().replace('-', "_")
}

fn with_default(command: Command, role: &str, arg: &Arg, values: Vec<String>) -> Command {
    let id = arg.get_id().as_str();
    let set = |arg: Arg| arg.default_values(values);
    if id == TOKEN_FILE { command.mut_arg(id, set) } else { command.mut_subcommand(role, |below| below.mut_arg(id, set)) }
}

fn unknown(path: &Path, role: &str, key: &str, names: impl Iterator<Item = String>) -> Failure {
    let names: Vec<String> = names.collect();
    if KEYS.iter().any(|client| client.name == key) {
        let detail = format!("unknown key `{key}`: it is a setting of the client, and this is the file of `swell {role}`");
        return wrong(path, detail).hint("move it to /etc/swell/config.toml, or to your own config.toml");
    }
    unknown_key(path, key, &names)
}

/// The form of a flag's value in a file.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Switch,
    Number,
    Text,
    Texts,
    Pairs,
}

fn form(arg: &Arg) -> Form {
    let kind = arg.get_value_parser().type_id();
    match arg.get_action() {
        ArgAction::SetTrue => Form::Switch,
        ArgAction::Append if kind == TypeId::of::<(String, String)>() => Form::Pairs,
        ArgAction::Append => Form::Texts,
        _ if kind == TypeId::of::<f64>() => Form::Number,
        _ => Form::Text,
    }
}

/// The arguments that a value of the file stands for; else what is wrong with it, and what to write.
fn arguments(arg: &Arg, value: &Value) -> Result<Vec<String>, (String, String)> {
    let key = name(arg);
    let form = form(arg);
    let found = match (form, value) {
        (Form::Switch, Value::Boolean(on)) => Some(vec![on.to_string()]),
        (Form::Number, Value::Integer(number)) => Some(vec![number.to_string()]),
        (Form::Number, Value::Float(number)) => Some(vec![number.to_string()]),
        (Form::Text | Form::Texts, Value::String(text)) => Some(vec![text.clone()]),
        (Form::Texts | Form::Pairs, Value::Array(items)) if items.is_empty() => {
            return Err(("is an empty list".to_owned(), "add a value, or remove the line".to_owned()));
        }
        (Form::Texts | Form::Pairs, Value::Array(items)) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        (Form::Pairs, Value::Table(pairs)) => {
            let word = |(name, value): (&String, &Value)| Some(format!("{name}={}", value.as_str()?));
            if pairs.keys().any(|name| name.contains('=')) { None } else { pairs.iter().map(word).collect() }
        }
        _ => None,
    };
    found.ok_or_else(|| {
        let quoted = match value {
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Boolean(on) => on.to_string(),
            _ => "…".to_owned(),
        };
        let (must, example) = match form {
            Form::Switch => ("true or false", format!("{key} = true")),
            Form::Number => ("a number", format!("{key} = 2")),
            Form::Text => ("a string", format!("{key} = \"{quoted}\"")),
            Form::Texts => ("a list of strings", format!("{key} = [\"…\"]")),
            Form::Pairs => ("a table of strings", format!("{key} = {{ role = \"web\" }}")),
        };
        (format!("is {}, and must be {must}", kind(value)), format!("write `{example}`"))
    })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) | Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list that holds more than strings",
        Value::Table(_) => "a table that holds more than strings",
    }
}

fn quoted(values: &[String]) -> String {
    values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ")
}

/// Validates `values` with the flag's own parser, so that an error can name the file.
fn check(arg: &Arg, values: &[String]) -> Result<(), String> {
    let alone = arg.clone().env(Resettable::Reset).default_values(values.to_vec());
    let parsed = Command::new("file").arg(alone).try_get_matches_from(["file"]);
    parsed.map(drop).map_err(|error| match error.source() {
        Some(why) => why.to_string(),
        None => error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    })
}

#[cfg(test)]
mod tests;
