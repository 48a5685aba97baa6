//! `/v1/cluster` and `/v1/whoami`: the state of the cluster, and the identity of the caller.

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

/// State of the cluster as this server sees it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClusterView {
    /// Number of the server that answers.
    server: u64,
    /// Number of the leader, if this server knows one.
    leader: Option<u64>,
    /// Raft term that this server knows; it grows with each election.
    term: u64,
    /// Last log index that this server has applied.
    applied: Option<u64>,
    /// Last log index on this server's disk.
    last_log: Option<u64>,
    /// Last log index in this server's newest snapshot.
    snapshot: Option<u64>,
    /// Size of the log's files.
    log_bytes: u64,
    /// Size of the state's files.
    state_bytes: u64,
    /// Size of the snapshots' files.
    snapshot_bytes: u64,
    /// Why this server stopped taking part, if it did.
    stopped: Option<String>,
    /// Incremented by each restore or recovery.
    generation: u64,
    /// Number of the current leadership.
    epoch: u64,
    /// Version of the rules that commands follow.
    feature_level: u32,
    /// Sequence number of the newest event.
    last_event: String,
    /// Hash over all events; equal on servers with the same applied index.
    event_head: String,
    /// Number of events since the cluster was created.
    events: u64,
    /// Number of targets that have joined.
    targets: u32,
    /// Number of connected agents.
    targets_connected: u64,
    /// Number of registered runners.
    runners: u64,
    /// Version of this server.
    version: String,
}

/// Shows the state of the cluster.
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

/// Identity that a token proves.
#[derive(Debug, Serialize, ToSchema)]
pub struct WhoamiView {
    /// Role of the token.
    role: String,
    /// Name within the role, for attribution.
    name: String,
}

/// Shows the identity that the token proves.
#[utoipa::path(get, path = "/v1/whoami", tag = "cluster", responses((status = OK, body = WhoamiView)))]
pub async fn whoami(Caller(caller): Caller) -> Json<WhoamiView> {
    Json(WhoamiView { role: caller.role.to_string(), name: caller.name })
}
