//! What gateways and servers say to each other: MessagePack with field names, one message in each binary frame of a WebSocket.
//! Knows nothing of how routes are derived or served.

use std::{collections::BTreeSet, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::{
    table::{RoutesHash, ServiceKey},
    update::RouteUpdate,
};
use crate::{rollout::assignment::Generation, units::Millis, wire::Refusal};

/// What tells a gateway from all others: 32 random hexadecimal digits, made once and saved with its table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GatewayId(pub String);

/// The services that a gateway routes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServedServices {
    /// Every service of every environment.
    All,
    /// Only these, deployed or not.
    Only(BTreeSet<ServiceKey>),
}

impl ServedServices {
    /// Whether requests for `service` may come to the gateway.
    pub fn contains(&self, service: &ServiceKey) -> bool {
        match self {
            ServedServices::All => true,
            ServedServices::Only(services) => services.contains(service),
        }
    }
}

/// Who a gateway is and which routes it holds, so that only differences are sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayHello {
    /// [`crate::wire::PROTOCOL_VERSION`] of the gateway.
    pub version: u16,
    pub gateway: GatewayId,
    /// Shown to people; need not be unique.
    pub name: String,
    pub zone: String,
    /// Where it listens for requests.
    pub addresses: Vec<SocketAddr>,
    pub serves: ServedServices,
    /// Generation of the table that it holds; the default when it holds none.
    pub generation: Generation,
    /// Hash of that table. A server that would send the same table sends nothing.
    pub hash: RoutesHash,
}

/// Messages of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GatewayToServer {
    /// The first message of a session.
    Hello(GatewayHello),
    /// Every request from now on is routed by the table of this generation.
    Routed { generation: Generation },
    /// An update does not fit the table that it holds: the server sends the whole table.
    SnapshotWanted,
    /// The gateway is alive.
    Heartbeat,
}

/// Messages of a server to a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerToGateway {
    /// Routes that changed. The next update follows when this one was acknowledged with [`GatewayToServer::Routed`].
    Routes(RouteUpdate),
    /// The server is alive. Without any frame for [`crate::wire::SILENCE_MAX`] a gateway looks for another server.
    Heartbeat,
    /// The server does not accept this gateway; trying again without a change is of no use.
    Refused(Refusal),
    /// The server is overloaded, stops, or is behind the gateway's table: try another one, this one after so long, with jitter.
    Busy { retry_after: Millis },
}
