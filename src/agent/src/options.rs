//! What an agent is told when it starts, and why it may refuse to. Knows nothing of what it will run.

use std::{io, path::PathBuf};

use serde::Deserialize;

use super::saved::SavedError;
use swell_model::{
    fleet::TargetInfo,
    units::{ByteSize, Millis},
};

/// What an agent needs to know of its server and of the cluster.
///
/// Not `Debug`: it holds the token.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentOptions {
    /// Its server. The version of the agent is filled in by [`super::Agent::open`].
    pub info: TargetInfo,
    /// Where everything is kept. Services must be able to pass through its parents (mode 0755) when they run as other users.
    pub data_dir: PathBuf,
    /// The servers of the cluster, as `http://ADDRESS:PORT`; tried in turn.
    pub servers: Vec<String>,
    /// Sent to servers as a bearer token.
    pub token: String,
    /// Bytes that stay free on the disk of `data_dir`, beyond what `artifacts::space` keeps anyway.
    #[serde(default)]
    pub reserve: ByteSize,
    /// Run instances without control groups where this machine forbids them: for development.
    #[serde(default)]
    pub allow_unisolated: bool,
    /// Services that name no user run as this one; without it each gets a user of its own, which is made when it is first needed.
    #[serde(default)]
    pub default_user: Option<String>,
    /// The program that knows `shim DIR`, where that is not this very one.
    #[serde(default)]
    pub shim: Option<PathBuf>,
    /// How long to wait.
    #[serde(default)]
    pub timing: Timing,
}

impl AgentOptions {
    /// With everything else at its default.
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
}

/// The waits between attempts. Each doubles from its first to its longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// Before an instance that died is started again.
    pub restart_first: Millis,
    /// The longest of those waits.
    pub restart_most: Millis,
    /// An instance that lived for so long was stable: the waits begin anew.
    pub stable_after: Millis,
    /// Before a release that failed to start is tried again.
    pub retry_first: Millis,
    /// The longest of those waits.
    pub retry_most: Millis,
    /// Before bytes that did not come are asked for again.
    pub fetch_first: Millis,
    /// The longest of those waits.
    pub fetch_most: Millis,
    /// Before another server is tried.
    pub session_first: Millis,
    /// The longest of those waits.
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
            session_first: Millis(500),
            session_most: Millis::from_secs(30),
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
    /// Another one has the folder.
    #[error("another agent works in {}; stop it, or give this one a folder of its own (`data_dir`)", .0.display())]
    Locked(PathBuf),
    /// The folder cannot be used.
    #[error("{what} {}: {source}; check the owner, the mode and the disk of the agent's `data_dir`", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What was recorded cannot be read.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// No server is named.
    #[error("no server is configured; name one at least in the agent's `servers`, such as \"http://10.0.0.1:7700\"")]
    NoServers,
    /// Not a server.
    #[error("`{0}` is not a server's address; write one such as \"http://10.0.0.1:7700\"")]
    Server(String),
    /// Instances would not be isolated.
    #[error("instances cannot be isolated here ({0}); run the agent as root with control groups, or set `allow_unisolated`")]
    NotIsolated(String),
    /// The system gives no random bytes.
    #[error("choosing the agent's id: {0}")]
    Random(getrandom::Error),
    /// The HTTP client could not be made.
    #[error("preparing to speak to servers: {0}")]
    Client(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let wait = |failures| backoff_ms(failures, Millis(100), Millis(1000));
        assert_eq!([1, 2, 3, 4, 5, 99].map(wait), [100, 200, 400, 800, 1000, 1000]);
    }
}
