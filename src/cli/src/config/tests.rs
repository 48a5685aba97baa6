//! Precedence of settings, and refused ones.

#![allow(clippy::unwrap_used)]

use super::*;

struct Place {
    dir: tempfile::TempDir,
    vars: BTreeMap<&'static str, String>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("repo/.git")).unwrap();
        fs::create_dir_all(dir.path().join("repo/src")).unwrap();
        fs::create_dir_all(dir.path().join("home/swell")).unwrap();
        let vars = BTreeMap::from([("XDG_CONFIG_HOME", dir.path().join("home").display().to_string())]);
        Self { dir, vars }
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.dir.path().join(path), text).unwrap();
    }

    fn load(&self, globals: &Globals) -> Result<Settings> {
        let var = |name: &str| self.vars.get(name).cloned();
        let folder = self.dir.path().join("repo/src");
        let system_file = self.dir.path().join("system.toml");
        Settings::from_sources(globals, &Sources { var: &var, folder: &folder, system_file: &system_file })
    }

    fn addr(&self, globals: &Globals) -> (String, Origin) {
        let settings = self.load(globals).unwrap();
        let setting = settings.get("addr").unwrap().clone();
        (setting.value.unwrap(), setting.origin)
    }
}

#[test]
fn setting_is_taken_from_source_with_highest_precedence() {
    let mut place = Place::new();
    let none = Globals::default();
    assert_eq!(place.addr(&none), ("http://127.0.0.1:7400".to_owned(), Origin::Default));
    place.write("system.toml", "addr = 'http://system:1'");
    assert!(matches!(place.addr(&none), (addr, Origin::System(_)) if addr == "http://system:1"));
    place.write("home/swell/config.toml", "addr = 'http://user:1'");
    assert!(matches!(place.addr(&none), (addr, Origin::User(_)) if addr == "http://user:1"));
    place.write("repo/.swell.toml", "addr = 'http://project:1'");
    assert!(matches!(place.addr(&none), (addr, Origin::Project(_)) if addr == "http://project:1"));
    place.vars.insert("SWELL_ADDR", "http://variable:1".to_owned());
    assert_eq!(place.addr(&none), ("http://variable:1".to_owned(), Origin::Variable("SWELL_ADDR")));
    let flag = Globals { addr: Some("http://flag:1".to_owned()), ..Globals::default() };
    assert_eq!(place.addr(&flag), ("http://flag:1".to_owned(), Origin::Flag("--addr")));
}

#[test]
fn project_file_above_repository_is_ignored() {
    let place = Place::new();
    place.write(".swell.toml", "addr = 'http://elsewhere:1'");
    assert_eq!(place.addr(&Globals::default()).1, Origin::Default);
}

#[test]
fn unknown_key_is_refused_with_suggestion() {
    let place = Place::new();
    place.write("home/swell/config.toml", "adr = 'http://x:1'");
    let failure = place.load(&Globals::default()).unwrap_err();
    assert!(failure.to_string().contains("unknown key `adr`") && failure.to_string().contains("`addr`"), "{failure}");
    assert_eq!(failure.exit(), crate::Exit::Usage);
}

#[test]
fn missing_named_file_is_refused_with_suggestion() {
    let place = Place::new();
    place.write("work.toml", "");
    let globals = Globals { config_file: Some(place.dir.path().join("wrok.toml")), ..Globals::default() };
    let said = place.load(&globals).unwrap_err().to_string();
    assert!(said.contains("does not exist") && said.contains("work.toml"), "{said}");
    let globals = Globals { config_file: Some(place.dir.path().join("work.toml")), ..Globals::default() };
    place.load(&globals).unwrap();
}

#[test]
fn token_file_in_project_file_is_refused() {
    let place = Place::new();
    place.write("repo/.swell.toml", "token_file = '/home/ada/.ssh/id_ed25519'");
    assert!(place.load(&Globals::default()).unwrap_err().to_string().contains("must not choose"));
}

#[test]
fn wrong_value_is_refused_with_its_origin() {
    let mut place = Place::new();
    place.vars.insert("SWELL_ADDR", "localhost:7400".to_owned());
    let said = place.load(&Globals::default()).unwrap_err().to_string();
    assert!(said.contains("variable SWELL_ADDR") && said.contains("http://127.0.0.1:7400"), "{said}");
    place.vars.insert("SWELL_ADDR", "https://x:7400".to_owned());
    assert!(place.load(&Globals::default()).unwrap_err().to_string().contains("only http://"));
}
