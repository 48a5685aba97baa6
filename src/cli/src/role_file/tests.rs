//! Precedence of settings, refused ones, and whether the examples in `config/` match the flags.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
};

use clap::CommandFactory as _;

use super::*;
use crate::{
    Cli, Exit,
    args::Command as Verb,
    roles::{AgentArgs, GatewayArgs, ServerArgs},
    start::{ParseError, parse_with},
};

/// The command line without the variables of whoever runs the tests.
fn without_variables() -> Command {
    Cli::command().mut_subcommands(|role| role.mut_args(|arg| arg.env(Resettable::Reset)))
}

/// A folder of role files in place of /etc/swell, and variables.
struct Place {
    folder: tempfile::TempDir,
    vars: BTreeMap<&'static str, String>,
}

impl Place {
    fn with(role: &str, text: &str) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap(), vars: BTreeMap::new() };
        fs::write(place.file(role), text).unwrap();
        place
    }

    fn file(&self, role: &str) -> PathBuf {
        self.folder.path().join(format!("{role}.toml"))
    }

    fn parse_as(&self, command: impl Fn() -> Command, words: &[&str]) -> Result<Cli, ParseError> {
        let var = |name: &str| self.vars.get(name).cloned();
        let arguments: Vec<OsString> = ["swell"].iter().chain(words).map(OsString::from).collect();
        parse_with(command, &arguments, &RoleSources { var: &var, folder: self.folder.path() })
    }

    fn parse(&self, words: &[&str]) -> Cli {
        self.parse_as(without_variables, words).unwrap()
    }

    fn refusal(&self, words: &[&str]) -> String {
        match self.parse_as(without_variables, words).unwrap_err() {
            ParseError::File(failure) => {
                assert_eq!(failure.exit(), Exit::Usage);
                failure.to_string()
            }
            ParseError::CommandLine(error) => panic!("refused as an argument: {error}"),
        }
    }

    fn agent(&self, words: &[&str]) -> AgentArgs {
        let Verb::Agent(args) = self.parse(&[&["agent"], words].concat()).command else { panic!("no agent") };
        args
    }

    fn server(&self, words: &[&str]) -> ServerArgs {
        let Verb::Server(args) = self.parse(&[&["server"], words].concat()).command else { panic!("no server") };
        args
    }

    fn gateway(&self, words: &[&str]) -> GatewayArgs {
        let Verb::Gateway(args) = self.parse(&[&["gateway"], words].concat()).command else { panic!("no gateway") };
        args
    }
}

#[test]
fn flag_takes_precedence_over_variable_over_file_over_default() {
    let place = Place::with("agent", "zone = 'file'");
    // A variable that cargo sets stands in for SWELL_ZONE, since a test must not change its process.
    let with_variable =
        || Cli::command().mut_subcommand("agent", |agent| agent.mut_arg("zone", |zone| zone.env("CARGO_MANIFEST_DIR")));
    let zone = |command: &dyn Fn() -> Command, words: &[&str]| match place.parse_as(command, words).unwrap().command {
        Verb::Agent(args) => args.zone,
        other => panic!("{other:?}"),
    };
    assert_eq!(zone(&with_variable, &["agent", "--zone", "flag"]), "flag");
    assert_eq!(zone(&with_variable, &["agent"]), std::env::var("CARGO_MANIFEST_DIR").unwrap());
    assert_eq!(zone(&without_variables, &["agent"]), "file");
    assert_eq!(place.agent(&[]).region, "default");
    let list = Place::with("agent", "server = ['a:1', 'b:1']\n[label]\nrole = 'web'\nrack = '7'");
    assert_eq!(list.agent(&[]).upstream.servers, ["a:1", "b:1"]);
    assert_eq!(list.agent(&["--server", "c:1"]).upstream.servers, ["c:1"], "a flag replaces a list");
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(list.agent(&[]).labels, [pair("rack", "7"), pair("role", "web")]);
    assert_eq!(Place::with("agent", "label = ['role=web']\nserver = 'a:1,b:1'").agent(&[]).labels, [pair("role", "web")]);
}

#[test]
fn dependent_settings_are_checked_across_sources() {
    let place = Place::with("server", "runner = true\ncpu = 2");
    let args = place.server(&[]);
    assert_eq!((args.runner, args.cpu, args.check()), (true, Some(2.0), Ok(())));
    let args = place.server(&["--cpu", "1.5", "--memory", "8GiB"]);
    assert_eq!((args.cpu, args.check()), (Some(1.5), Ok(())));
    let place = Place::with("server", "cpu = 0.5");
    assert!(place.server(&[]).check().unwrap_err().contains("runner = true"));
    assert_eq!(place.server(&["--runner"]).check(), Ok(()));
    assert!(Place::with("server", "runner = false").server(&["--memory", "1GiB"]).check().is_err());
}

#[test]
fn named_file_is_read_and_must_exist() {
    let mut place = Place::with("agent", "zone = 'system'");
    fs::write(place.file("mine"), "zone = 'mine'").unwrap();
    let mine = place.file("mine").display().to_string();
    assert_eq!(place.agent(&["--config", &mine]).zone, "mine");
    place.vars.insert("SWELL_CONFIG", mine.replace("mine", "mien"));
    let said = place.refusal(&["agent"]);
    assert!(said.contains("does not exist") && said.contains("mine.toml`?"), "{said}");
    place.vars.insert("SWELL_CONFIG", mine.clone());
    assert_eq!(place.agent(&[]).zone, "mine");
    assert_eq!(place.agent(&["--config", "/dev/null"]).zone, "default");
    assert!(matches!(place.parse(&["dev"]).command, Verb::Dev(_)), "dev reads no file, not even that of SWELL_CONFIG");
    assert!(place.refusal(&["dev", "--config", &mine]).contains("reads no configuration file"));
    assert!(matches!(place.parse(&["status", "--config", &mine]).command, Verb::Status(_)), "clients read their file later");
}

#[test]
fn token_is_taken_from_source_with_highest_precedence() {
    let mut place = Place::with("agent", "token_file = '/file'");
    let token = |place: &Place, words: &[&str]| place.parse(words).globals.token_file;
    assert_eq!(token(&place, &["agent"]), Some("/file".into()));
    assert_eq!(token(&place, &["--token-file", "/flag", "agent"]), Some("/flag".into()));
    assert_eq!(token(&place, &["agent", "--token-file", "/flag"]), Some("/flag".into()));
    place.vars.insert("SWELL_TOKEN", "swell_agent_1".to_owned());
    assert_eq!(token(&place, &["agent"]), None, "the variable holds the token itself");
    place.vars.insert("SWELL_TOKEN_FILE", "/variable".to_owned());
    assert_eq!(token(&place, &["agent"]), Some("/variable".into()));
}

#[test]
fn wrong_setting_is_refused_with_file_key_and_hint() {
    for (role, text, words) in [
        ("agent", "zoen = 'b'", ["unknown key `zoen`", "`zone`?"]),
        ("agent", "default-user = 'app'", ["unknown key `default-user`", "`default_user`?"]),
        ("agent", "allow_unisolated = true", ["unknown key `allow_unisolated`", "the keys are"]),
        ("agent", "addr = 'http://x:1'", ["unknown key `addr`", "/etc/swell/config.toml"]),
        ("server", "token_file = '/x'", ["unknown key `token_file`", "`swell server`"]),
        ("agent", "limits = {}", ["unknown key `limits`", "the keys are"]),
        ("gateway", "limit = {}", ["unknown key `limit`", "`limits`?"]),
        ("agent", "zone = 3", ["`zone` is a number, and must be a string", "`zone = \"3\"`"]),
        ("server", "runner = 'yes'", ["`runner` is a string, and must be true or false", "`runner = true`"]),
        ("server", "cpu = '2'", ["`cpu` is a string, and must be a number", "`cpu = 2`"]),
        ("server", "cpu = 0", ["`cpu` is `0`", "0.1 to 4096"]),
        ("agent", "server = []", ["`server` is an empty list", "remove the line"]),
        ("agent", "server = [1]", ["`server` is a list that holds more", "[\"…\"]"]),
        ("agent", "label = { role = 1 }", ["`label` is a table that holds more", "{ role = \"web\" }"]),
        ("agent", "address = 'here'", ["`address` is `here`: invalid IP address", "`127.0.0.1`"]),
        ("agent", "reserve = '1 horse'", ["`reserve` is `1 horse`", "`512MiB`"]),
        ("gateway", "listen = ['x']", ["`listen` is `x`", "0.0.0.0:80"]),
        ("gateway", "listen = ['0.0.0.0:80']\nlistener = []", ["`listen` and `[[listener]]` both", "remove one"]),
        ("gateway", "zone = 'a", ["line 1", "zone = 'a"]),
    ] {
        let place = Place::with(role, text);
        let said = place.refusal(&[role]);
        let file = place.file(role).display().to_string();
        assert!(said.contains(&file) && words.iter().all(|word| said.contains(word)), "{text}: {said}");
    }
}

#[test]
fn gateway_settings_without_flag_are_passed_on() {
    let args = Place::with("gateway", "zone = 'a'\ntrust_forwarded = true\n[limits]\nattempts_max = 2").gateway(&[]);
    assert_eq!((args.zone.as_deref(), args.tuning.keys.len()), (Some("a"), 2));
    assert_eq!(args.tuning.keys["limits"]["attempts_max"].as_integer(), Some(2));
}

/// A file of `config/`.
fn example(name: &str) -> String {
    fs::read_to_string(Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("../../config").join(name)).unwrap()
}

/// An example with every setting made: those lines begin with `#` and no blank.
fn made(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => format!("{setting}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[test]
fn example_files_set_nothing_and_show_every_flag_with_its_default() {
    for role in ["server", "agent", "gateway"] {
        let text = example(&format!("{role}.toml"));
        assert_eq!(text.parse::<toml::Table>().unwrap(), toml::Table::new(), "{role}.toml must set nothing");
        let made = made(&text);
        let place = Place::with(role, &made);
        place.parse(&[role]);
        let table: toml::Table = made.parse().unwrap();
        let flags = flags(&Cli::command(), role);
        for flag in &flags {
            let key = name(flag);
            let value =
                table.get(&key).unwrap_or_else(|| panic!("config/{role}.toml must show `{key}`: add it, with its default"));
            let default: Vec<_> = flag.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
            assert!(
                default.is_empty() || arguments(flag, value).unwrap() == default,
                "{role}.toml: the default of {key} is {default:?}"
            );
        }
        let known: BTreeSet<String> = flags.iter().map(name).chain(GATEWAY_TABLES.map(str::to_owned)).collect();
        assert!(table.keys().all(|key| known.contains(key)));
    }
}

#[test]
fn client_example_shows_every_key_with_its_default() {
    let text = example("client.toml");
    assert_eq!(text.parse::<toml::Table>().unwrap(), toml::Table::new());
    let table: toml::Table = made(&text).parse().unwrap();
    assert!(table.keys().all(|key| KEYS.iter().any(|known| known.name == key)), "{table:?}");
    for key in KEYS {
        let value = table.get(key.name).unwrap_or_else(|| panic!("config/client.toml must show `{}`", key.name));
        assert!(key.default.is_none_or(|default| value.as_str() == Some(default)), "the default of {}", key.name);
    }
}
