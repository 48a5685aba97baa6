//! What keeps failing inside Groundswell itself: the mark on a subject whose actor fails again and again, so that people see why it
//! stands still.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::change::Change;
use crate::{
    event::Subject,
    tables::{Key, Record, Table, key},
    units::Timestamp,
};

/// The mark. There is one while the actor fails, and none otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorFailure {
    /// Whose actor it is; the cluster's is the scheduler.
    pub subject: Subject,
    /// How it failed last.
    pub why: String,
    /// When it was marked.
    pub since: Timestamp,
}

impl ActorFailure {
    /// What a subject waits for that has this mark.
    pub fn waits_for(&self) -> String {
        format!("its actor on the leading server, which fails and is started again and again: {}", self.why)
    }
}

/// What to record, so that just the subjects of `failing` are marked, each with how it failed last: a new mark, or none any more.
pub fn changes(marked: &[ActorFailure], failing: &BTreeMap<Subject, String>) -> Vec<(Subject, Option<String>)> {
    let is_marked = |subject: &Subject| marked.iter().any(|trouble| trouble.subject == *subject);
    let new =
        failing.iter().filter(|(subject, _)| !is_marked(subject)).map(|(subject, why)| (subject.clone(), Some(why.clone())));
    let over = marked.iter().map(|trouble| &trouble.subject).filter(|subject| !failing.contains_key(subject));
    new.chain(over.map(|subject| (subject.clone(), None))).collect()
}

/// Where the mark of a subject is.
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
    fn just_what_fails_is_marked() {
        let (old, kept, new) = (Subject::Build(BuildId(1)), Subject::Cluster, Subject::Rollout(RolloutId(2)));
        let marked =
            [&old, &kept].map(|subject| ActorFailure { subject: subject.clone(), why: "it fails".into(), since: Timestamp(1) });
        let failing = BTreeMap::from([(kept, "it fails still".to_owned()), (new.clone(), "it fails".to_owned())]);
        assert_eq!(changes(&marked, &failing), [(new, Some("it fails".to_owned())), (old, None)]);
        assert_eq!(changes(&[], &BTreeMap::new()), []);
    }
}
