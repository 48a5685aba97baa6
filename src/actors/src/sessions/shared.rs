//! What all sessions of agents have at hand.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use super::{reports::ReportsInbox, table::SessionTable, view::FleetView};
use swell_raft::Node;

/// The server, as a session sees it.
pub(super) struct Shared {
    pub node: Node,
    pub sessions: Arc<SessionTable>,
    pub view: Arc<FleetView>,
    pub reports: ReportsInbox,
    /// Sessions that may be opened at once.
    pub opening: Semaphore,
    /// Whether this server knows a leader.
    pub is_in_touch: watch::Receiver<bool>,
}
