//! openraft with our types: commands, answers, nodes.

use std::{fmt, sync::Arc};

use openraft::type_config::alias;
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use swell_model::{
    command::{Command, Outcome},
    rejection::Rejection,
};
use swell_storage::checkpoint::SnapshotDir;

/// What one log entry carries: a group of commands, applied in order, each by itself. Cheap to clone.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Commands(pub Arc<[Command]>);

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands", self.0.len())
    }
}

impl fmt::Display for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The answers to the commands of an entry, in their order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Answers(pub Vec<Result<Outcome, Rejection>>);

openraft::declare_raft_types!(
    /// The types that this program gives to openraft.
    pub Types:
        D = Commands,
        R = Answers,
        NodeId = u64,
        Node = openraft::BasicNode,
        // One leader a term, as in the paper: so a term is a fencing token by itself.
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

pub type Raft = openraft::Raft<Types, Machine>;
pub type LogId = alias::LogIdOf<Types>;
pub type Vote = alias::VoteOf<Types>;
pub type Entry = alias::EntryOf<Types>;
pub type Membership = alias::StoredMembershipOf<Types>;
pub type SnapshotMeta = alias::SnapshotMetaOf<Types>;
pub type Snapshot = alias::SnapshotOf<Types, SnapshotDir>;
