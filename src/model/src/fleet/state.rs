//! The fleet: targets, the environments that group them, and what is kept for each.

use std::sync::Arc;
use std::{collections::BTreeMap, net::IpAddr};

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::change::Change;
use crate::{
    ids::{EnvironmentName, PipelineName, PortName, ServiceName, TargetName},
    principal::Principal,
    tables::{Key, Record, Table, key},
    units::{Amount, Millis, Timestamp},
};

/// How long after its server was lost, or its session ended, a target counts as lost. Until then gates wait.
pub const TARGET_GRACE: Millis = Millis::from_secs(60);

/// The most labels of a target or of a selector.
pub const LABELS_MAX: usize = 32;

/// The ports from which a target gives its services theirs, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    /// Whether some port is of both ranges.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// How many pairs it holds.
    pub fn pairs(self) -> u16 {
        self.last.saturating_sub(self.first).div_ceil(2)
    }
}

impl Default for PortRange {
    fn default() -> Self {
        Self { first: 20_000, last: 29_999 }
    }
}

/// What an agent says of its server when it joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetInfo {
    pub name: TargetName,
    pub region: String,
    /// The zone within the region: what fails together.
    pub zone: String,
    /// The labels by which environments select it.
    pub labels: BTreeMap<String, String>,
    /// Where gateways reach its instances.
    pub address: IpAddr,
    /// The ports that its services may have.
    pub ports: PortRange,
    pub agent_version: String,
}

/// One server of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its dense number, never used again: what bitmaps hold.
    pub index: u32,
    pub info: TargetInfo,
    /// Why no rollout may change it: the text of whoever cordoned it.
    pub cordoned: Option<String>,
    /// When it joined first.
    pub joined_at: Timestamp,
    /// The log index of its last change: its ETag.
    pub revision: u64,
}

impl Record for Target {
    const TABLE: Table = Table::Targets;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        key(self.index)
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Target(record))
    }
}

/// The number of a target's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetByName {
    pub name: TargetName,
    pub index: u32,
}

impl Record for TargetByName {
    const TABLE: Table = Table::TargetsByName;

    fn key(&self) -> Key {
        key(self.name.as_str())
    }
}

/// A target at an address. Several may share one, such as containers of a host, while their port ranges are apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetByAddress {
    pub address: IpAddr,
    pub index: u32,
}

impl Record for TargetByAddress {
    const TABLE: Table = Table::TargetsByAddress;

    fn key(&self) -> Key {
        key(self.address.to_string().as_str()).then(self.index)
    }
}

/// The targets whose agents have been gone for longer than [`TARGET_GRACE`]: the leader declares it, and a connection ends it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LostTargets {
    pub targets: RoaringBitmap,
}

impl Record for LostTargets {
    const TABLE: Table = Table::LostTargets;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        Key::all()
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::LostTargets(record))
    }
}

/// Which agents a server is connected to.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Presence {
    pub server: u64,
    /// The targets whose agents are connected to it.
    pub connected: RoaringBitmap,
}

impl Record for Presence {
    const TABLE: Table = Table::Presence;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        key(self.server)
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Presence(record))
    }
}

/// Nothing may be deployed to an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// The text of whoever froze it.
    pub why: String,
    pub by: Principal,
    pub at: Timestamp,
}

/// What a branch's pipeline file can only tighten.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyLimits {
    /// Every wave but the last bakes at least so long.
    pub least_bake: Option<Millis>,
    /// The first wave is at most this.
    pub first_wave_max: Option<Amount>,
}

/// A named set of targets and the policy for changing them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    pub name: EnvironmentName,
    /// The labels that its targets have; all of them must match. An empty selector selects every target.
    pub selector: BTreeMap<String, String>,
    /// The targets that match.
    pub members: RoaringBitmap,
    pub frozen: Option<Freeze>,
    pub policy: PolicyLimits,
    pub created_at: Timestamp,
    /// The log index of its last change: its ETag.
    pub revision: u64,
}

impl Environment {
    /// Whether a target with these labels belongs to it.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.iter().all(|(name, value)| labels.get(name) == Some(value))
    }
}

impl Record for Environment {
    const TABLE: Table = Table::Environments;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        key(self.name.as_str())
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Environment(record))
    }
}

/// The two ports that a target keeps for one `auto` port of a service, so that a new instance can start beside the old one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortLease {
    pub target: u32,
    pub pipeline: PipelineName,
    pub service: ServiceName,
    pub port: PortName,
    pub pair: [u16; 2],
}

impl Record for PortLease {
    const TABLE: Table = Table::PortLeases;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        lease_key(self.target, &self.pipeline, &self.service, &self.port)
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::PortLease(record))
    }
}

/// The key of the ports that a target keeps for a service.
pub fn lease_key(target: u32, pipeline: &PipelineName, service: &ServiceName, port: &PortName) -> Key {
    key(target).then(pipeline.as_str()).then(service.as_str()).then(port.as_str())
}
