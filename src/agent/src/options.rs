//! Options of an agent, and why it may refuse to start. Must not know what it will run.

use std::path::PathBuf;

use serde::Deserialize;

use swell_model::{
    fleet::TargetInfo,
    units::{ByteSize, Millis},
};
use swell_system::{checksummed_file, files::FileError};

/// Options of an agent.
///
/// Not `Debug`: it holds the token.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentOptions {
    /// The target that it serves. [`super::Agent::open`] fills in the agent's version.
    pub info: TargetInfo,
    /// Where everything is kept, for this agent alone. Services that run as other users pass through it: its parents need mode 0755.
    pub data_dir: PathBuf,
    /// Servers of the cluster, as `http://HOST:PORT` or `HOST:PORT`; tried in turn.
    pub servers: Vec<String>,
    /// An agent's token, sent to servers as a bearer token.
    pub token: String,
    /// Bytes that stay free on the disk of `data_dir`, beyond what `system::disk_space` reserves anyway.
    #[serde(default)]
    pub reserve: ByteSize,
    /// Runs instances without control groups where this machine forbids them. For development.
    #[serde(default)]
    pub allow_unisolated: bool,
    /// The user of services that name none; without it each gets a user of its own, made when it is first needed.
    #[serde(default)]
    pub default_user: Option<String>,
    /// The program that is run as `PROGRAM shim DIR`; this very one by default.
    #[serde(default)]
    pub shim: Option<PathBuf>,
    /// Waits between attempts.
    #[serde(default)]
    pub timing: Timing,
}

impl AgentOptions {
    /// Options with everything else at its default.
    pub fn new(info: TargetInfo, data_dir: impl Into<PathBuf>, servers: Vec<String>, token: impl Into<String>) -> Self {
        Self {
            info,
            data_dir: data_dir.into(),
            servers,
            token: token.into(),
            reserve: ByteSize(0),
            allow_unisolated: false,
            default_user: None,
            shim: None,
            timing: Timing::default(),
        }
    }

    /// Brings the servers' addresses into one form and fills in the version.
    ///
    /// # Errors
    /// When there is no server or an address is none.
    pub(super) fn check(&mut self) -> Result<(), AgentError> {
        if self.servers.is_empty() {
            return Err(AgentError::NoServers);
        }
        for server in &mut self.servers {
            *server = server_url(server)?;
        }
        self.info.agent_version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(())
    }
}

/// `http://HOST:PORT` for an address with or without the scheme.
fn server_url(server: &str) -> Result<String, AgentError> {
    let (scheme, address) = server.split_once("://").unwrap_or(("http", server));
    if scheme != "http" {
        return Err(AgentError::Scheme { server: server.to_owned(), scheme: scheme.to_owned() });
    }
    let url = format!("http://{}", address.trim_end_matches('/'));
    let parsed =
        reqwest::Url::parse(&url).ok().filter(|url| url.path() == "/" && url.query().is_none() && url.fragment().is_none());
    let is_address = |url: &reqwest::Url| url.username().is_empty() && url.password().is_none();
    match parsed.filter(is_address) {
        Some(_) => Ok(url),
        None => Err(AgentError::Server(server.to_owned())),
    }
}

/// Waits between attempts. Each doubles from its first to its longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// First wait before an instance that died is started again.
    pub restart_first: Millis,
    /// Longest wait before that.
    pub restart_most: Millis,
    /// An instance that lives for so long is stable: its waits begin anew.
    pub stable_after: Millis,
    /// First wait before a release that failed to start is tried again.
    pub retry_first: Millis,
    /// Longest wait before that.
    pub retry_most: Millis,
    /// First wait before an archive that did not arrive is fetched again.
    pub fetch_first: Millis,
    /// Longest wait before that.
    pub fetch_most: Millis,
    /// First wait before another session is tried; the wait itself is random, up to this. 50,000 agents that lose their sessions at once
    /// come back as at most 10,000 a second.
    pub session_first: Millis,
    /// Longest wait before that.
    pub session_most: Millis,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            restart_first: Millis::from_secs(1),
            restart_most: Millis::from_secs(60),
            stable_after: Millis::from_secs(60),
            retry_first: Millis::from_secs(30),
            retry_most: Millis::from_secs(300),
            fetch_first: Millis::from_secs(1),
            fetch_most: Millis::from_secs(60),
            session_first: Millis::from_secs(5),
            session_most: Millis::from_secs(60),
        }
    }
}

/// The wait after so many failures in a row (at least one): doubled from `first` to `most`.
pub(super) fn backoff_ms(failures: u32, first: Millis, most: Millis) -> u64 {
    first.0.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(most.0)
}

/// Why an agent cannot work at all.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Another agent has the data folder.
    #[error("another agent works in {}; stop it, or give this one a folder of its own (`data_dir`)", .0.display())]
    Locked(PathBuf),
    /// The data folder cannot be used.
    #[error("{0}; check the owner, the mode and the disk of the agent's `data_dir`")]
    File(#[from] FileError),
    /// A record in the data folder cannot be read.
    #[error(transparent)]
    Record(#[from] checksummed_file::Error),
    /// The options name no server.
    #[error("no server is configured; name at least one in the agent's `servers`, such as \"10.0.0.1:7400\"")]
    NoServers,
    /// An address in the options is none.
    #[error("`{0}` is not the address of a server; write HOST:PORT, such as \"10.0.0.1:7400\"")]
    Server(String),
    /// Servers are not reached this way.
    #[error("`{server}` begins with `{scheme}://`, and servers speak http alone; write HOST:PORT, such as \"10.0.0.1:7400\"")]
    Scheme {
        /// The address as it was written.
        server: String,
        /// The URL scheme that it begins with, without `://`.
        scheme: String,
    },
    /// Instances would not be isolated.
    #[error("instances cannot be isolated here ({0}); run the agent as root with control groups, or set `allow_unisolated`")]
    NotIsolated(String),
    /// The system gives no random bytes.
    #[error("failed to choose the agent's id: {0}; check the system's random device")]
    Random(getrandom::Error),
    /// The HTTP client could not be made.
    #[error("failed to prepare the HTTP client: {0}; check the machine's resolver configuration")]
    Client(String),
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn server_is_accepted_with_and_without_scheme() {
        for server in ["10.0.0.1:7400", "http://10.0.0.1:7400", "http://10.0.0.1:7400/"] {
            assert_eq!(server_url(server).unwrap(), "http://10.0.0.1:7400");
        }
        assert_eq!(server_url("[::1]:7400").unwrap(), "http://[::1]:7400");
    }

    #[test]
    fn server_that_is_no_address_is_refused_with_the_right_form() {
        for server in ["", "http://", "http://http://10.0.0.1:7400", "10.0.0.1:7400/v1", "a:b@10.0.0.1", "10.0.0.1:x"] {
            let error = server_url(server).unwrap_err().to_string();
            assert!(error.contains("write HOST:PORT") && !error.contains("write http"), "{error}");
        }
        assert!(server_url("https://10.0.0.1").unwrap_err().to_string().contains("servers speak http alone"));
    }

    #[test]
    fn wait_doubles_up_to_the_longest() {
        let wait = |failures| backoff_ms(failures, Millis(100), Millis(1000));
        assert_eq!([1, 2, 3, 4, 5, 99].map(wait), [100, 200, 400, 800, 1000, 1000]);
    }
}
