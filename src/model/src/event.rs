//! What happened: one ordered, hash-chained log, kept beside state and not in it. It replaces a message queue and an audit database.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    ids::{BuildId, EnvironmentName, IdError, PipelineName, ReleaseId, RepositoryName, RolloutId, RunnerName, TargetName},
    principal::Principal,
    units::Timestamp,
};

pub use crate::event_kind::{DataKey, EventKind};

/// Where an event stands in the log: the Raft log index that applied it and its place within that entry. Written `120.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EventSeq {
    /// The Raft log index.
    pub index: u64,
    /// The place within the entry, from 0.
    pub ordinal: u32,
}

impl fmt::Display for EventSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.ordinal)
    }
}

impl FromStr for EventSeq {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let parsed = text
            .split_once('.')
            .and_then(|(index, ordinal)| Some(Self { index: index.parse().ok()?, ordinal: ordinal.parse().ok()? }));
        parsed.ok_or_else(|| IdError { text: text.to_owned(), expected: "an event's sequence number, such as `120.3`" })
    }
}

impl Serialize for EventSeq {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            (self.index, self.ordinal).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for EventSeq {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom);
        }
        let (index, ordinal) = <(u64, u32)>::deserialize(deserializer)?;
        Ok(Self { index, ordinal })
    }
}

/// What an event or an answer is about. Written `build/b42`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The cluster as a whole.
    Cluster,
    Repository(RepositoryName),
    Pipeline(PipelineName),
    Build(BuildId),
    Artifact(Digest),
    Release(ReleaseId),
    Environment(EnvironmentName),
    Target(TargetName),
    Runner(RunnerName),
    Rollout(RolloutId),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Cluster => f.write_str("cluster"),
            Subject::Repository(name) => write!(f, "repository/{name}"),
            Subject::Pipeline(name) => write!(f, "pipeline/{name}"),
            Subject::Build(id) => write!(f, "build/{id}"),
            Subject::Artifact(digest) => write!(f, "artifact/{digest}"),
            Subject::Release(id) => write!(f, "release/{id}"),
            Subject::Environment(name) => write!(f, "environment/{name}"),
            Subject::Target(name) => write!(f, "target/{name}"),
            Subject::Runner(name) => write!(f, "runner/{name}"),
            Subject::Rollout(id) => write!(f, "rollout/{id}"),
        }
    }
}

/// The most bytes that an event's `note` keeps; longer ones are cut, with an ellipsis.
pub const NOTE_BYTES_MAX: usize = 2000;

/// Something that happened, once and for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its place in the log.
    pub seq: EventSeq,
    /// When, by the leader's clock; never earlier than the event before.
    pub at: Timestamp,
    pub principal: Principal,
    pub subject: Subject,
    pub kind: EventKind,
    /// The state before, where the subject's state changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The state after, where the subject's state changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Why, in a sentence, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Small values for programs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<DataKey, String>,
    /// The chain's hash over everything before this event.
    pub previous: Digest,
}

impl Event {
    /// The chain's hash over everything up to and including this event: SHA-256 of its MessagePack, which holds the hash before.
    pub fn chain_hash(&self) -> Digest {
        // A struct of plain fields always serialises; the digest of nothing would show as a broken chain.
        Digest::of(&rmp_serde::to_vec_named(self).unwrap_or_default())
    }
}

/// Cuts `text` to at most `bytes_max` bytes at a character's edge, with an ellipsis where something is missing.
pub fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes_max.saturating_sub('…'.len_utf8()));
    format!("{}…", &text[..end])
}
