//! What keeps failing inside Groundswell itself: the mark on a subject whose actor fails again and again, so that people see why it
//! stands still.

use serde::{Deserialize, Serialize};

use super::{
    event::Subject,
    tables::{Key, Record, Table, key},
    units::Timestamp,
};

/// The mark. There is one while the actor fails, and none otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Whose actor it is; the cluster's is the scheduler.
    pub subject: Subject,
    /// How it failed last.
    pub why: String,
    /// When it was marked.
    pub since: Timestamp,
}

impl Trouble {
    /// What a subject waits for that has this mark.
    pub fn waits_for(&self) -> String {
        format!("its actor on the leading server, which fails and is started again and again: {}", self.why)
    }
}

/// Where the mark of a subject is.
pub fn trouble_key(subject: &Subject) -> Key {
    key(subject.to_string().as_str())
}

impl Record for Trouble {
    const TABLE: Table = Table::Troubles;

    fn key(&self) -> Key {
        trouble_key(&self.subject)
    }
}
