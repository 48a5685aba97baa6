//! Consensus: openraft over storage, the network between servers, and the node as everyone else sees it. Nothing outside knows openraft.

mod feed;
mod format;
mod health;
mod log_store;
mod machine;
mod network;
mod node;
mod options;
mod proposer;
mod recent;
mod status;
mod types;

#[cfg(test)]
mod tests;

pub use feed::{ChangeFeed, FeedItem};
pub use node::{Error, Node};
pub use options::Options;
pub use status::{Leadership, Status};
pub use swell_storage::{EventStore, EventsError, View};
