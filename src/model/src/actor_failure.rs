//! What keeps failing inside Groundswell itself: a record on each subject whose actor fails again and again, so that people see why it
//! makes no progress.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::change::Change;
use crate::{
    event::Subject,
    tables::{Key, Record, Table, key},
    units::Timestamp,
};

/// The actor of a subject keeps failing. The record is gone when it works again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorFailure {
    /// The subject that the actor drives; the cluster's actor is the scheduler.
    pub subject: Subject,
    /// The actor's last error.
    pub why: String,
    /// When the failure was recorded.
    pub since: Timestamp,
}

/// What to record so that exactly the subjects of `failing` have a record: an error for a new one, none for one that works again.
pub fn changes(recorded: &[ActorFailure], failing: &BTreeMap<Subject, String>) -> Vec<(Subject, Option<String>)> {
    let is_recorded = |subject: &Subject| recorded.iter().any(|failure| failure.subject == *subject);
    let new =
        failing.iter().filter(|(subject, _)| !is_recorded(subject)).map(|(subject, why)| (subject.clone(), Some(why.clone())));
    let over = recorded.iter().map(|failure| &failure.subject).filter(|subject| !failing.contains_key(subject));
    new.chain(over.map(|subject| (subject.clone(), None))).collect()
}

/// The key of a subject's record.
pub fn actor_failure_key(subject: &Subject) -> Key {
    key(subject.to_string().as_str())
}

impl Record for ActorFailure {
    const TABLE: Table = Table::ActorFailures;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        actor_failure_key(&self.subject)
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::ActorFailure(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{BuildId, RolloutId};

    #[test]
    fn failures_are_recorded_once_and_cleared() {
        let (old, kept, new) = (Subject::Build(BuildId(1)), Subject::Cluster, Subject::Rollout(RolloutId(2)));
        let marked =
            [&old, &kept].map(|subject| ActorFailure { subject: subject.clone(), why: "it fails".into(), since: Timestamp(1) });
        let failing = BTreeMap::from([(kept, "it fails still".to_owned()), (new.clone(), "it fails".to_owned())]);
        assert_eq!(changes(&marked, &failing), [(new, Some("it fails".to_owned())), (old, None)]);
        assert_eq!(changes(&[], &BTreeMap::new()), []);
    }
}
