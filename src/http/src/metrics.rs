//! Metrics for Prometheus, from replicated state and from this server's own meters. No label grows with the fleet.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{app::App, problem::Problem};
use swell_model::{
    build::{Build, BuildState, OpenBuild},
    cluster::Cluster,
    rollout::{OpenRollout, Rollout, RolloutState, plan_input::connected},
    tables::{Key, ReadTables, SCAN_RECORDS_MAX, Scan, key},
};
use swell_raft::View;

/// Upper bounds of the buckets of proposal latency, in milliseconds; a bucket without a bound follows.
const BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];

/// Meters of this server's API: proposal latency, and bytes of artifacts served.
#[derive(Debug, Default)]
pub struct Meters {
    artifact_bytes: AtomicU64,
    buckets: [AtomicU64; BOUNDS_MS.len() + 1],
    sum_us: AtomicU64,
}

impl Meters {
    /// Records the latency of one proposal.
    pub fn record(&self, took: Duration) {
        let place = BOUNDS_MS.partition_point(|bound| Duration::from_millis(*bound) < took);
        self.buckets[place].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// Counts bytes of a served artifact.
    pub fn artifact_served(&self, bytes: u64) {
        self.artifact_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn write(&self, out: &mut Text) {
        let bytes = self.artifact_bytes.load(Ordering::Relaxed) as f64;
        out.one("swell_artifact_bytes_served_total", "counter", "Bytes of artifacts served.", bytes);
        out.head("swell_propose_seconds", "histogram", "Latency of proposals made by this server's API.");
        let mut count = 0;
        for (place, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            let bound = BOUNDS_MS.get(place).map_or("+Inf".to_owned(), |bound| (*bound as f64 / 1000.0).to_string());
            out.line("swell_propose_seconds_bucket", Some(("le", &bound)), count as f64);
        }
        out.line("swell_propose_seconds_sum", None, self.sum_us.load(Ordering::Relaxed) as f64 / 1e6);
        out.line("swell_propose_seconds_count", None, count as f64);
    }
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").unwrap_or_default();
    }

    fn line(&mut self, name: &str, label: Option<(&str, &str)>, value: f64) {
        let label = label.map(|(name, value)| format!("{{{name}=\"{value}\"}}")).unwrap_or_default();
        writeln!(self.0, "{name}{label} {value}").unwrap_or_default();
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.line(name, None, value);
    }
}

/// All metrics, in the text format of Prometheus.
pub async fn text(app: &App) -> Result<String, Problem> {
    let node = app.node.clone();
    let mut out = app
        .read(move |view| {
            let mut out = Text::default();
            let status = node.status();
            let leads = status.leader == Some(status.node_id);
            out.one("swell_leader", "gauge", "Whether this server leads.", f64::from(u8::from(leads)));
            out.one("swell_leader_known", "gauge", "Whether a leader is known.", f64::from(u8::from(status.leader.is_some())));
            out.one("swell_raft_term", "gauge", "Raft term.", status.term as f64);
            out.one("swell_applied_index", "gauge", "Last applied log index.", view.applied() as f64);
            out.one("swell_log_index", "gauge", "Last log index on disk.", status.last_log.unwrap_or_default() as f64);
            out.head("swell_disk_bytes", "gauge", "Size of the files of log, state and snapshots.");
            for (what, bytes) in [("log", status.log_bytes), ("state", status.state_bytes), ("snapshots", status.snapshot_bytes)]
            {
                out.line("swell_disk_bytes", Some(("what", what)), bytes as f64);
            }
            of_state(view, &mut out)?;
            Ok(out)
        })
        .await?;
    if let Ok(usage) = app.content.usage().await {
        out.one("swell_content_bytes", "gauge", "Size of the objects in the content store.", usage.bytes as f64);
        out.one("swell_content_free_bytes", "gauge", "Free space on the disk of the content store.", usage.free_bytes as f64);
    }
    app.meters.write(&mut out);
    Ok(out.0)
}

fn of_state(view: &View, out: &mut Text) -> Result<(), Problem> {
    let cluster: Cluster = view.get(&Key::all())?.unwrap_or_default();
    out.one("swell_events_total", "counter", "Events since the cluster was created.", cluster.event_count as f64);
    out.one("swell_targets", "gauge", "Targets that have joined.", f64::from(cluster.next_target));
    out.one("swell_targets_connected", "gauge", "Targets whose agents are connected.", connected(view)?.len() as f64);

    let mut builds: BTreeMap<&'static str, u64> = BTreeMap::new();
    for open in view.scan::<OpenBuild>(&Scan::all(), SCAN_RECORDS_MAX)? {
        let build: Option<Build> = view.get(&key(open.build.0))?;
        *builds.entry(build.map_or(BuildState::Queued, |build| build.state).name()).or_default() += 1;
    }
    out.head("swell_builds_open", "gauge", "Builds that have not ended, by state.");
    for state in BuildState::ALL.into_iter().filter(|state| !state.is_end()) {
        out.line("swell_builds_open", Some(("state", state.name())), builds.remove(state.name()).unwrap_or_default() as f64);
    }

    let mut rollouts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for open in view.scan::<OpenRollout>(&Scan::all(), SCAN_RECORDS_MAX)? {
        let rollout: Option<Rollout> = view.get(&key(open.rollout.0))?;
        *rollouts.entry(rollout.map_or(RolloutState::Blocked, |rollout| rollout.state).name()).or_default() += 1;
    }
    out.head("swell_rollouts_open", "gauge", "Rollouts that have not ended, by state.");
    for state in RolloutState::ALL.into_iter().filter(|state| !state.is_end()) {
        out.line("swell_rollouts_open", Some(("state", state.name())), rollouts.remove(state.name()).unwrap_or_default() as f64);
    }
    Ok(())
}
