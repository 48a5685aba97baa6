//! What agents and servers say to each other: MessagePack frames on one WebSocket. Bounded; anything bigger travels beside, over HTTP.

use serde::{Deserialize, Serialize};

use crate::{
    fleet::{TargetInfo, observation::Report},
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

/// What tells an agent from all others: 32 random hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AgentId(pub String);

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentToServer {
    /// The first frame: who it is, and which desired state it follows.
    Hello {
        /// Its server.
        info: TargetInfo,
        /// What it follows now.
        following: Generation,
        /// Which agent it is: random, made once and kept in its data folder. Of two agents with one name the second is refused.
        agent: AgentId,
    },
    /// What changed on its server.
    Report(Vec<Report>),
    /// It is alive.
    Heartbeat,
}

/// What a server says to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerToAgent {
    /// What the target should run. Sent first thing and whenever it changes.
    Desired(DesiredTarget),
    /// The server is alive and the desired state has not changed.
    Heartbeat,
    /// The server will not have it, such as for a name that another agent uses.
    Refused(String),
}
