//! How state is agreed: openraft over storage, the network between servers, and the node as everyone else sees it.

mod node;
mod options;

pub use crate::storage::View;
pub use node::{Error, Leadership, Node, Status};
pub use options::Options;
