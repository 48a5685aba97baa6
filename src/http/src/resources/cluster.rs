//! `/v1/cluster` and `/v1/whoami`: who answers, who leads, and who asks.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{access::Caller, app::App, problem::Problem};
use swell_model::{
    build::Runner,
    cluster::Cluster,
    rollout::plan_input::connected,
    tables::{Key, ReadTables, SCAN_RECORDS_MAX, Scan},
};

/// How the cluster is doing, as this server sees it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClusterView {
    /// The server that answers.
    server: u64,
    /// The server that leads, as far as this one knows.
    leader: Option<u64>,
    /// The Raft term.
    term: u64,
    /// The log index up to which this server has applied.
    applied: Option<u64>,
    /// The index of the last log entry on this server's disk.
    last_log: Option<u64>,
    /// The index that its newest snapshot covers.
    snapshot: Option<u64>,
    /// The size of the log's files.
    log_bytes: u64,
    /// The size of the state's files.
    state_bytes: u64,
    /// The size of the snapshots' files.
    snapshot_bytes: u64,
    /// Why it stopped, if it did.
    stopped: Option<String>,
    /// Grows with each restore or recovery.
    generation: u64,
    /// The present leadership.
    epoch: u64,
    /// Which rules changes follow.
    feature_level: u32,
    /// The newest event.
    last_event: String,
    /// The hash over all events: two servers that show the same index show the same.
    event_head: String,
    /// How many events there were.
    events: u64,
    /// How many targets ever joined.
    targets: u32,
    /// How many agents are connected.
    targets_connected: u64,
    /// How many runners registered.
    runners: u64,
    /// The version of this server.
    version: String,
}

/// Shows how the cluster is doing.
#[utoipa::path(get, path = "/v1/cluster", tag = "cluster", responses((status = OK, body = ClusterView)))]
pub async fn get(State(app): State<App>) -> Result<Json<ClusterView>, Problem> {
    let node = app.node.clone();
    app.read(move |view| {
        let status = node.status();
        let cluster: Cluster = view.get(&Key::all())?.unwrap_or_default();
        Ok(Json(ClusterView {
            server: status.node_id,
            leader: status.leader,
            term: status.term,
            applied: status.applied,
            last_log: status.last_log,
            snapshot: status.snapshot,
            log_bytes: status.log_bytes,
            state_bytes: status.state_bytes,
            snapshot_bytes: status.snapshot_bytes,
            stopped: status.stopped,
            generation: cluster.generation,
            epoch: cluster.epoch.0,
            feature_level: cluster.feature_level,
            last_event: cluster.last_event.to_string(),
            event_head: cluster.event_head.to_string(),
            events: cluster.event_count,
            targets: cluster.next_target,
            targets_connected: connected(view)?.len(),
            runners: view.scan::<Runner>(&Scan::all(), SCAN_RECORDS_MAX)?.len() as u64,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    })
    .await
}

/// Who asks.
#[derive(Debug, Serialize, ToSchema)]
pub struct WhoamiView {
    /// What the token may do.
    role: String,
    /// The name within the role, for attribution.
    name: String,
}

/// Shows what the token proves.
#[utoipa::path(get, path = "/v1/whoami", tag = "cluster", responses((status = OK, body = WhoamiView)))]
pub async fn whoami(Caller(caller): Caller) -> Json<WhoamiView> {
    Json(WhoamiView { role: caller.role.to_string(), name: caller.name })
}
