//! What agents and servers say to each other: MessagePack frames on one WebSocket. Bounded; anything bigger travels beside, over HTTP.

use serde::{Deserialize, Serialize};

use std::net::IpAddr;

pub use crate::ids::AgentId;
use crate::{
    digest::Digest,
    fleet::{
        TargetInfo,
        observation::{Report, ReportsHash},
    },
    ids::TargetName,
    rollout::assignment::{DesiredTarget, Generation},
    units::Millis,
};

/// The largest frame but a gateway's routes, in bytes.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// The largest frame that tells a gateway its routes, in bytes: room for a table of 200,000 instances.
pub const ROUTES_BYTES_MAX: usize = 64 << 20;

/// How often an agent or a gateway says that it is alive, with up to a quarter of jitter.
pub const HEARTBEAT_EVERY: Millis = Millis::from_secs(10);

/// How long either side waits for the other's next frame before it closes the session.
pub const SILENCE_MAX: Millis = Millis::from_secs(30);

/// The version of these messages. A server refuses a hello of another version, naming both.
pub const PROTOCOL_VERSION: u16 = 2;

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)] // one hello a session: a box would only cost an allocation
pub enum AgentToServer {
    /// The first frame of a session.
    Hello(AgentHello),
    /// What changed on the target. Sequence numbers grow by one within an incarnation, across sessions; a report that was not
    /// acknowledged is sent again in the next session, with the same number.
    Report {
        /// Place of this message in its incarnation's order, from 1.
        sequence: u64,
        /// The newest report on each pipeline that changed.
        reports: Vec<Report>,
    },
    /// The agent is alive.
    Heartbeat,
}

/// Who an agent is, and what it already knows and has said, so that only differences are sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentHello {
    /// [`PROTOCOL_VERSION`] of the agent.
    pub version: u16,
    /// The target that it serves.
    pub info: TargetInfo,
    /// Random, made once and kept in its data folder. Of two agents with one name the second is refused.
    pub agent: AgentId,
    /// How often this agent was started, kept on disk: orders reports of an agent before and after a restart.
    pub incarnation: u64,
    /// The desired state that it follows.
    pub following: Generation,
    /// [`DesiredTarget::hash`] of that state; `None` when it follows none. A server that would send the same sends nothing.
    pub desired_hash: Option<Digest>,
    /// [`ReportsHash`] of the newest report on every pipeline. A server that recorded the same needs none of them again.
    pub reports_hash: ReportsHash,
}

/// What a server says to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerToAgent {
    /// The first frame: the session is open.
    Welcome {
        /// Whether state holds what the agent's `reports_hash` stands for; else the agent reports on every pipeline anew.
        reports_known: bool,
    },
    /// What the target should run; sent when it differs from what the agent follows.
    Desired(DesiredTarget),
    /// All reports up to this sequence number are applied.
    Acknowledged {
        /// Sequence number of the agent's own incarnation.
        sequence: u64,
    },
    /// Every connected gateway obeys routes that take the reports up to this number into account: instances which those reports
    /// no longer show as serving may drain. Sent only after it was acknowledged.
    Routed {
        /// Sequence number of the agent's own incarnation.
        sequence: u64,
    },
    /// The server is alive and the desired state has not changed.
    Heartbeat,
    /// The server will not have this agent; trying again without a change is no use.
    Refused(Refusal),
    /// The server is overloaded or about to stop: try any server again after so long, with jitter.
    Busy {
        /// Milliseconds to wait at least.
        retry_after: Millis,
    },
}

/// Why a server refuses an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Another agent of this name is connected, or was within the grace of a lost target.
    NameInUse {
        /// Where the other agent is.
        by: IpAddr,
    },
    /// Another target has this address and an overlapping port range: gateways could not tell their instances apart.
    AddressInUse {
        /// The other target.
        by: TargetName,
    },
    /// The agent speaks another version of these messages.
    Version {
        /// The server's.
        server: u16,
    },
    /// The rules reject what it says of itself.
    Rejected {
        /// [`crate::rejection::Rejection`], as its code and text.
        code: String,
        /// Text of the rejection.
        reason: String,
    },
}
