//! Encodings of what consensus keeps on disk, in types of our own: openraft's types change between its versions, and these must not. The
//! golden bytes in the tests notice a change.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    io,
};

use openraft::{BasicNode, EntryPayload, impls::leader_id_std::LeaderId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::types::{Commands, Entry, LogId, Membership, Vote};
use swell_model::command::Command;
use swell_storage::codec;

/// A log id.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct IdRecord {
    term: u64,
    index: u64,
}

/// The vote of this server.
#[derive(Debug, Serialize, Deserialize)]
struct VoteRecord {
    term: u64,
    node: u64,
    /// Whether a majority voted for the same.
    elected: bool,
}

/// The membership: one set of voters, or two while it changes; the other nodes are learners.
#[derive(Debug, Default, Serialize, Deserialize)]
struct MembersRecord {
    voters: Vec<BTreeSet<u64>>,
    /// Addresses by node id.
    nodes: BTreeMap<u64, String>,
}

#[derive(Debug, Serialize, Deserialize)]
enum PayloadRecord<'a> {
    /// A leader's first entry.
    Blank,
    Commands(Cow<'a, [Command]>),
    Members(MembersRecord),
}

#[derive(Debug, Serialize, Deserialize)]
struct EntryRecord<'a> {
    id: IdRecord,
    payload: PayloadRecord<'a>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PositionRecord {
    last: Option<IdRecord>,
    /// Log id of the membership entry.
    members_since: Option<IdRecord>,
    members: MembersRecord,
}

/// How far state has come, as consensus wants to know it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Position {
    pub last: Option<LogId>,
    pub membership: Membership,
}

pub fn encode_id(id: LogId) -> io::Result<Vec<u8>> {
    encode(&id_record(id))
}

pub fn decode_id(bytes: &[u8]) -> io::Result<LogId> {
    Ok(id_of(decode(bytes)?))
}

pub fn encode_vote(vote: &Vote) -> io::Result<Vec<u8>> {
    encode(&VoteRecord { term: vote.leader_id.term, node: vote.leader_id.voted_for, elected: vote.committed })
}

pub fn decode_vote(bytes: &[u8]) -> io::Result<Vote> {
    let VoteRecord { term, node, elected } = decode(bytes)?;
    Ok(Vote { leader_id: LeaderId { term, voted_for: node }, committed: elected })
}

pub fn encode_entry(entry: &Entry) -> io::Result<Vec<u8>> {
    let payload = match &entry.payload {
        EntryPayload::Blank => PayloadRecord::Blank,
        EntryPayload::Normal(Commands(commands)) => PayloadRecord::Commands(Cow::Borrowed(commands)),
        EntryPayload::Membership(members) => PayloadRecord::Members(members_record(members)),
    };
    encode(&EntryRecord { id: id_record(entry.log_id), payload })
}

pub fn decode_entry(bytes: &[u8]) -> io::Result<Entry> {
    let EntryRecord { id, payload } = decode(bytes)?;
    let payload = match payload {
        PayloadRecord::Blank => EntryPayload::Blank,
        PayloadRecord::Commands(commands) => EntryPayload::Normal(Commands(commands.into_owned().into())),
        PayloadRecord::Members(members) => EntryPayload::Membership(members_of(members)?),
    };
    Ok(Entry { log_id: id_of(id), payload })
}

pub fn encode_position(position: &Position) -> io::Result<Vec<u8>> {
    encode(&PositionRecord {
        last: position.last.map(id_record),
        members_since: position.membership.log_id().map(id_record),
        members: members_record(position.membership.membership()),
    })
}

pub fn decode_position(bytes: &[u8]) -> io::Result<Position> {
    let PositionRecord { last, members_since, members } = decode(bytes)?;
    let membership = Membership::new(members_since.map(id_of), members_of(members)?);
    Ok(Position { last: last.map(id_of), membership })
}

fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    codec::encode(value).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    codec::decode(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn id_record(id: LogId) -> IdRecord {
    IdRecord { term: id.leader_id.term, index: id.index }
}

fn id_of(record: IdRecord) -> LogId {
    LogId::new_term_index(record.term, record.index)
}

fn members_record(members: &openraft::Membership<u64, BasicNode>) -> MembersRecord {
    let nodes = members.nodes().map(|(id, node)| (*id, node.addr.clone())).collect();
    MembersRecord { voters: members.get_joint_config().clone(), nodes }
}

fn members_of(record: MembersRecord) -> io::Result<openraft::Membership<u64, BasicNode>> {
    if record.voters.is_empty() && record.nodes.is_empty() {
        return Ok(openraft::Membership::default());
    }
    let nodes: BTreeMap<u64, BasicNode> = record.nodes.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
    openraft::Membership::new(record.voters, nodes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::{
        command::RepositoryAction,
        principal::{Principal, Role},
        units::Timestamp,
    };

    /// Add lines for new formats; never change one.
    const GOLDEN: &str = include_str!("golden.txt");

    fn members() -> openraft::Membership<u64, BasicNode> {
        let nodes = (1..=3).map(|id| (id, BasicNode { addr: format!("10.0.0.{id}:7071") })).collect::<BTreeMap<_, _>>();
        openraft::Membership::new(vec![BTreeSet::from([1, 2])], nodes).unwrap()
    }

    fn entry(index: u64, payload: EntryPayload<Commands, u64, BasicNode>) -> Entry {
        Entry { log_id: LogId::new_term_index(2, index), payload }
    }

    fn command() -> Command {
        Command {
            action: RepositoryAction::Create { name: "site".parse().unwrap(), default_branch: "main".into() }.into(),
            principal: Principal::new(Role::Developer, "ada"),
            at: Timestamp(5),
            monotonic: Default::default(),
            idempotency_key: Some("k".into()),
            fingerprint: None,
            epoch: None,
            if_revision: None,
        }
    }

    #[test]
    fn former_values_are_read_and_written_the_same() {
        let position = Position {
            last: Some(LogId::new_term_index(2, 9)),
            membership: Membership::new(Some(LogId::new_term_index(1, 0)), members()),
        };
        let vote = Vote { leader_id: LeaderId { term: 2, voted_for: 3 }, committed: true };
        let entries =
            [EntryPayload::Blank, EntryPayload::Normal(Commands([command()].into())), EntryPayload::Membership(members())];
        let mut written = vec![
            ("id", encode_id(LogId::new_term_index(2, 9)).unwrap()),
            ("vote", encode_vote(&vote).unwrap()),
            ("position", encode_position(&position).unwrap()),
        ];
        written.extend((7..).zip(entries).map(|(index, payload)| ("entry", encode_entry(&entry(index, payload)).unwrap())));
        let written: String = written.iter().map(|(what, bytes)| format!("{what} {}\n", hex::encode(bytes))).collect();
        println!("{written}");
        for line in GOLDEN.lines() {
            let (what, bytes) = line.split_once(' ').unwrap();
            let bytes = hex::decode(bytes).unwrap();
            let again = match what {
                "id" => encode_id(decode_id(&bytes).unwrap()),
                "vote" => encode_vote(&decode_vote(&bytes).unwrap()),
                "position" => encode_position(&decode_position(&bytes).unwrap()),
                _ => encode_entry(&decode_entry(&bytes).unwrap()),
            };
            assert_eq!(again.unwrap(), bytes, "{line}");
        }
        assert_eq!(written, GOLDEN);
        assert_eq!(decode_position(&encode_position(&position).unwrap()).unwrap(), position);
        assert_eq!(decode_position(&encode_position(&Position::default()).unwrap()).unwrap(), Position::default());
    }
}
