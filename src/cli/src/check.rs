//! One result of `swell doctor`. Knows nothing of what is checked: the server's and the machine's checks look alike.

use serde::Serialize;

use super::failure::Failure;

/// One result of `swell doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    /// Finding in one line, as shown beside the name.
    pub detail: String,
    /// What to do about a failed check.
    pub hint: Option<String>,
}

impl Check {
    /// A check that passed.
    pub fn passed(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), ok: true, detail: detail.into(), hint: None }
    }

    /// A check that failed, with what to do about it.
    pub fn failed(name: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name: name.to_owned(), ok: false, detail: detail.into(), hint: Some(hint.into()) }
    }

    /// A check that could not be made.
    pub fn from_failure(name: &str, failure: &Failure) -> Self {
        Self::failed(name, failure.detail(), failure.hint_text().unwrap_or_default())
    }
}
