//! Tokens: finds the one for a server, and stores those of `swell login`. A token is only sent to the server that it was given for.
//! Knows nothing of HTTP.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    config::{Origin, Settings, user_folder},
    failure::{Failure, Result, file_error},
    roles::default_data_dir,
};
use swell_security::at_work;

/// Stored tokens, by address of the server.
type Stored = BTreeMap<String, String>;

/// The token for the configured server, if there is one.
///
/// The first of: `--token-file` or `token_file`; SWELL_TOKEN; the one that `swell login` stored for this address; on the server's own
/// machine, the admin token in its data folder, if this user may read it.
pub fn find(settings: &Settings, var: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>> {
    let addr = settings.value("addr").unwrap_or_default();
    let by_project = settings.get("addr").is_some_and(|setting| matches!(setting.origin, Origin::Project(_)));
    let from_file = settings.value("token_file").map(|path| read_secret(Path::new(path))).transpose()?;
    let given = from_file.or_else(|| var("SWELL_TOKEN").filter(|token| !token.is_empty()));
    if let Some(token) = given {
        if by_project {
            let detail = format!("the project file chose the server {addr}, and your token was not given for that server");
            return Err(Failure::usage(detail).hint(format!("if you trust it, set SWELL_ADDR={addr} or run `swell login`")));
        }
        return Ok(Some(token.trim().to_owned()));
    }
    if let Some(path) = stored_file(var)
        && let Some(token) = read_stored(&path)?.get(&normal(addr))
    {
        return Ok(Some(token.clone()));
    }
    let named = var("SWELL_DATA").map(PathBuf::from);
    // The server of `swell dev` has its data folder below that of `swell dev`.
    let of_dev = named.iter().cloned().chain([default_data_dir("dev")]).map(|folder| folder.join("server"));
    let folders = named.iter().cloned().chain(of_dev).chain([default_data_dir("server")]);
    Ok(folders.into_iter().find_map(|folder| local(&folder, addr)))
}

/// The admin token of the server with the data folder `folder`, if it is running on this machine and listens at `addr`.
fn local(folder: &Path, addr: &str) -> Option<String> {
    let url = reqwest::Url::parse(addr).ok()?;
    let is_here = matches!(url.host_str()?, "localhost" | "127.0.0.1" | "[::1]");
    let is_its = is_here && normal(&at_work::url(folder)?) == normal(addr);
    if is_its { read_secret(&folder.join("tokens/admin")).ok() } else { None }
}

/// Stores `token` for the server at `addr` in a file that only its owner can read. Returns the file.
pub fn store(addr: &str, token: &str, var: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf> {
    let path = stored_file(var)
        .ok_or_else(|| Failure::usage("no home folder to store the token in").hint("set HOME, or use SWELL_TOKEN"))?;
    let mut stored = read_stored(&path)?;
    stored.insert(normal(addr), token.to_owned());
    let text = toml::to_string(&stored).map_err(|error| Failure::usage(error.to_string()))?;
    write_secret(&path, &text).map_err(|error| file_error("write", &path, &error))?;
    Ok(path)
}

fn stored_file(var: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    user_folder(var).map(|folder| folder.join("credentials.toml"))
}

fn read_stored(path: &Path) -> Result<Stored> {
    match path.try_exists() {
        Ok(false) => return Ok(Stored::new()),
        Ok(true) => {}
        Err(error) => return Err(file_error("read", path, &error)),
    }
    let text = read_secret(path)?;
    toml::from_str(&text).map_err(|error| {
        Failure::new(super::Exit::Usage, "configuration", format!("{}: {}", path.display(), error.message()))
            .hint("delete it and run `swell login` again")
    })
}

/// The text of a file that must not be readable by other users.
fn read_secret(path: &Path) -> Result<String> {
    let mode = fs::metadata(path).map_err(|error| file_error("read", path, &error))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let detail = format!("`{}` holds a token and is readable by other users (mode {mode:o})", path.display());
        return Err(Failure::new(super::Exit::Usage, "exposed", detail).hint(format!("run `chmod 600 {}`", path.display())));
    }
    let text = fs::read_to_string(path).map_err(|error| file_error("read", path, &error))?;
    Ok(text.trim().to_owned())
}

/// Replaces the file atomically.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let new = path.with_extension(format!("new.{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// The canonical form of an address.
fn normal(addr: &str) -> String {
    reqwest::Url::parse(addr).map_or_else(|_| addr.to_owned(), |url| url.to_string().trim_end_matches('/').to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{config::Sources, globals::Globals};

    fn settings(folder: &Path, var: &dyn Fn(&str) -> Option<String>) -> Settings {
        Settings::from_sources(&Globals::default(), &Sources { var, folder, system_file: &folder.join("none") }).unwrap()
    }

    #[test]
    fn stored_token_is_private_and_only_for_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().display().to_string();
        let var = |name: &str| (name == "XDG_CONFIG_HOME").then(|| home.clone());
        let path = store("http://10.0.0.1:7400", "swell_developer_1", &var).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let at = |addr: &'static str| {
            let home = home.clone();
            move |name: &str| match name {
                "XDG_CONFIG_HOME" => Some(home.clone()),
                "SWELL_ADDR" => Some(addr.to_owned()),
                _ => None,
            }
        };
        let (right, wrong) = (at("http://10.0.0.1:7400/"), at("http://10.0.0.2:7400"));
        assert_eq!(find(&settings(dir.path(), &right), &right).unwrap().as_deref(), Some("swell_developer_1"));
        assert_eq!(find(&settings(dir.path(), &wrong), &wrong).unwrap(), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(find(&settings(dir.path(), &right), &right).unwrap_err().code(), "exposed");
    }

    #[test]
    fn token_is_not_sent_to_server_chosen_by_project() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".swell.toml"), "addr = 'http://evil.example:1'").unwrap();
        let var = |name: &str| (name == "SWELL_TOKEN").then(|| "swell_admin_1".to_owned());
        let failure = find(&settings(dir.path(), &var), &var).unwrap_err();
        assert!(failure.to_string().contains("SWELL_ADDR=http://evil.example:1"), "{failure}");
    }

    #[test]
    fn admin_token_of_local_running_server_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("tokens")).unwrap();
        let server = at_work::announce(&data, "0.0.0.0:7999".parse().unwrap()).unwrap();
        write_secret(&data.join("tokens/admin"), "swell_admin_2\n").unwrap();
        assert_eq!(local(&data, "http://127.0.0.1:7999").as_deref(), Some("swell_admin_2"));
        assert_eq!(local(&data, "http://127.0.0.1:7400"), None);
        assert_eq!(local(&data, "http://10.0.0.1:7999"), None);
        drop(server);
        assert_eq!(local(&data, "http://127.0.0.1:7999"), None, "another program may listen there now");
    }
}
