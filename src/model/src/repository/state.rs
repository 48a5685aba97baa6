//! Repositories that Groundswell hosts. The refs and bundles are state; the bare repositories on the servers are caches of them.

use std::sync::Arc;
use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::change::Change;
use crate::{
    digest::Digest,
    ids::{IdError, RepositoryName},
    principal::Principal,
    tables::{Key, Record, Table, key},
    units::{ByteSize, Timestamp},
};

/// The name of a git commit: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct CommitId(String);

impl CommitId {
    /// All of its digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 10 digits: enough for people.
    pub fn short(&self) -> &str {
        &self.0[..10]
    }
}

impl FromStr for CommitId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let hexadecimal = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hexadecimal && matches!(text.len(), 40 | 64) {
            return Ok(Self(text.to_owned()));
        }
        Err(IdError { text: text.to_owned(), expected: "a commit: all 40 hexadecimal digits of its name" })
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for CommitId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A repository that Groundswell hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// Its name; `git push http://SERVER/git/NAME` reaches it.
    pub name: RepositoryName,
    /// The branch that `HEAD` names.
    pub default_branch: String,
    /// The number of the next bundle.
    pub next_bundle: u64,
    pub created_at: Timestamp,
}

impl Record for Repository {
    const TABLE: Table = Table::Repositories;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        key(self.name.as_str())
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Repository(record))
    }
}

/// One ref of a hosted repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ref {
    pub repository: RepositoryName,
    /// Its full name, such as `refs/heads/main`.
    pub name: String,
    /// What it points at.
    pub commit: CommitId,
    /// When it was last moved.
    pub moved_at: Timestamp,
    pub moved_by: Principal,
}

impl Record for Ref {
    const TABLE: Table = Table::Refs;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        key(self.repository.as_str()).then(self.name.as_str())
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Ref(record))
    }
}

/// A git bundle in the content store. All of a repository's bundles, in order, hold all of its objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    pub repository: RepositoryName,
    /// Its place in the order, from 0.
    pub number: u64,
    pub digest: Digest,
    pub size: ByteSize,
}

impl Record for Bundle {
    const TABLE: Table = Table::Bundles;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        key(self.repository.as_str()).then(self.number)
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Bundle(record))
    }
}

/// A ref that a push moves: from `old` (none: it is created) to `new` (none: it is deleted).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefUpdate {
    /// The ref's full name.
    pub name: String,
    /// What it must point at now.
    pub old: Option<CommitId>,
    /// What it shall point at.
    pub new: Option<CommitId>,
}
