//! Errors of repositories, read from git's messages. Knows nothing of callers.

use std::{io, path::PathBuf, time::Duration};

use swell_system::disk_space::NoSpace;

/// Why an operation on a repository failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GitError {
    /// There is no repository at the address, or it is hidden from these credentials.
    #[error("no repository at `{url}`: check the address; a private one needs a token that may read it ({detail})")]
    NoRepository {
        /// The address, without credentials.
        url: String,
        detail: String,
    },
    /// The machine at the address does not answer.
    #[error("cannot reach `{url}`: check the host name, the network and its proxy, then try again ({detail})")]
    Unreachable {
        /// The address, without credentials.
        url: String,
        detail: String,
    },
    /// The server refuses these credentials, or requires some.
    #[error(
        "`{url}` refuses access: give a token or deploy key that may read it; some forges say this of an unknown repository ({detail})"
    )]
    Denied {
        /// The address, without credentials.
        url: String,
        detail: String,
    },
    /// No such branch, tag or commit; it may have been deleted.
    #[error(
        "`{reference}` is no branch, tag or commit of `{url}`: it may have been deleted or never pushed; `git ls-remote` lists what there is"
    )]
    RefNotFound {
        reference: String,
        /// The address, without credentials.
        url: String,
    },
    /// No such file in that commit.
    #[error("commit {commit} has no file `{path}`: add it, or correct the path in the pipeline")]
    PathNotFound { commit: String, path: String },
    /// A file or an output exceeds its bound.
    #[error("{what} is larger than {bytes_max} bytes, the largest that is read: make it smaller")]
    TooLarge { what: String, bytes_max: usize },
    /// It timed out and was stopped.
    #[error("{what} timed out after {} s: the server may be slow or down; try again", after.as_secs())]
    TimedOut { what: String, after: Duration },
    /// An address or a name that must not be given to git.
    #[error("`{text}` is not {expected}")]
    Invalid {
        text: String,
        /// What would have been understood.
        expected: &'static str,
    },
    /// The git command itself could not be run.
    #[error("failed to run git: install it, and check that it is on PATH ({0})")]
    Start(#[source] io::Error),
    /// An operation on the local disk failed.
    #[error("failed to {what} `{}`: check space and permissions ({source})", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    /// The disk is full.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// The state of a hosted repository could not be read or stored.
    #[error("{what}: {detail}; try again")]
    State { what: String, detail: String },
    /// Any other failure.
    #[error("{what} failed: {detail}")]
    Failed { what: String, detail: String },
}

impl GitError {
    /// Whether the same operation may succeed later, unchanged.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut { .. } | Self::State { .. } | Self::Io { .. })
    }

    /// Makes a function that turns an I/O error into [`Self::Io`]; `what` completes "failed to …".
    pub fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    /// Finds out why an operation on `url` failed from git's message (`LC_ALL=C`; git 2.30 to 2.50 and the common forges).
    pub fn of_remote(url: &str, what: &str, stderr: &str) -> Self {
        let has = |needles: &[&str]| needles.iter().any(|needle| stderr.contains(needle));
        let (url, detail) = (without_credentials(url), gist(stderr));
        if has(&[
            "does not appear to be a git repository",
            "epository not found",
            "error: 404",
            "does not exist",
            "could not be found",
            "no such repository",
        ]) || (stderr.contains("fatal: repository '") && stderr.contains("' not found"))
        {
            Self::NoRepository { url, detail }
        } else if has(&[
            "Authentication failed",
            "could not read Username",
            "could not read Password",
            "Permission denied",
            "error: 401",
            "error: 403",
            "Access denied",
            "access denied",
            "Host key verification failed",
        ]) {
            Self::Denied { url, detail }
        } else if has(&[
            "Could not resolve host",
            "Failed to connect",
            "Couldn't connect",
            "Connection refused",
            "Connection timed out",
            "Connection reset",
            "Network is unreachable",
            "No route to host",
            "unable to access",
            "unable to connect",
            "error: 5",
            "early EOF",
            "unexpected disconnect",
            "hung up unexpectedly",
            "Could not read from remote repository",
        ]) {
            Self::Unreachable { url, detail }
        } else {
            Self::Failed { what: what.to_owned(), detail }
        }
    }
}

/// The address without credentials, to be shown and logged.
pub fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority_len = rest.find('/').unwrap_or(rest.len());
    match rest[..authority_len].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}

/// The lines that give the cause, without progress and hints, in at most 300 characters.
pub fn gist(stderr: &str) -> String {
    let says_why = |line: &&str| ["fatal:", "error:", "remote:", "ERROR:"].iter().any(|mark| line.starts_with(mark));
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let telling: Vec<&str> = lines.iter().copied().filter(says_why).collect();
    let shown = if telling.is_empty() { lines } else { telling };
    let text = shown.into_iter().take(4).collect::<Vec<_>>().join("; ");
    if text.is_empty() { "git said nothing".to_owned() } else { text.chars().take(300).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_kind_is_read_from_gits_message() {
        let kind = |stderr: &str| match GitError::of_remote("https://u:p@host/x.git", "fetching", stderr) {
            GitError::NoRepository { url, .. } => format!("none {url}"),
            GitError::Denied { .. } => "denied".to_owned(),
            GitError::Unreachable { .. } => "unreachable".to_owned(),
            other => other.to_string(),
        };
        assert_eq!(
            kind("remote: Repository not found.\nfatal: repository 'https://host/x.git/' not found"),
            "none https://host/x.git"
        );
        assert_eq!(
            kind("fatal: '/tmp/x' does not appear to be a git repository\nfatal: Could not read from remote repository."),
            "none https://host/x.git"
        );
        assert_eq!(kind("fatal: could not read Username for 'https://host': terminal prompts disabled"), "denied");
        assert_eq!(kind("git@host: Permission denied (publickey).\nfatal: Could not read from remote repository."), "denied");
        assert_eq!(kind("fatal: unable to access 'https://host/x.git/': Could not resolve host: host"), "unreachable");
        assert_eq!(kind("fatal: unable to access 'https://h/': The requested URL returned error: 403"), "denied");
        assert_eq!(kind("fatal: the sky fell"), "fetching failed: fatal: the sky fell");
    }
}
