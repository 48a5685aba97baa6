//! The API's answers, as far as text is made of them; `--json` prints the server's own. Missing fields have their default, so that
//! client and server may be of different versions. Knows nothing of how it is displayed.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IntoDeserializer, value::StrDeserializer},
};
use serde_json::Value;

use super::failure::{Exit, Failure, Result};
use swell_model::{
    build::BuildState,
    rollout::{Purpose, RolloutState, Verdict},
};

/// Parses an answer of the server.
pub fn read<T: DeserializeOwned>(value: &Value) -> Result<T> {
    T::deserialize(value).map_err(|error| {
        Failure::new(Exit::Failed, "not_understood", format!("failed to parse the server's answer: {error}"))
            .hint("compare the versions of client and server: `swell version`, `swell cluster status`")
    })
}

/// Parses the items of a list.
pub fn read_all<T: DeserializeOwned>(values: &[Value]) -> Result<Vec<T>> {
    values.iter().map(read).collect()
}

/// A value of the model as the server names it. A name that this client does not know is kept, for display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named<V> {
    name: String,
    value: Option<V>,
}

impl<V: Copy> Named<V> {
    /// The value; none where a server of another version names one that this client does not know.
    pub fn get(&self) -> Option<V> {
        self.value
    }

    /// The name that the server used.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl<V> Default for Named<V> {
    fn default() -> Self {
        Self { name: String::new(), value: None }
    }
}

impl<V> fmt::Display for Named<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl<'de, V: DeserializeOwned> Deserialize<'de> for Named<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let by_name: StrDeserializer<'_, serde::de::value::Error> = name.as_str().into_deserializer();
        let value = V::deserialize(by_name).ok();
        Ok(Self { name, value })
    }
}

/// Structs whose missing fields have their default.
macro_rules! views {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(default)]
        pub struct $name { $(pub $field: $type,)* }
    )*};
}

views! {
    /// A build of one commit, with its attempts.
    Build {
        id: String, pipeline: String, commit: String, git_ref: String, state: Named<BuildState>, ended: bool, waits_for: Option<String>,
        cancel_asked: bool, failure: Option<String>, attempts: Vec<Attempt>, attempt_count: u32, artifact: Option<String>,
        release: Option<String>, by: String, cause: String, created_at: u64, ended_at: Option<u64>,
    }
    /// An attempt at a build, on one runner.
    Attempt {
        number: u32, runner: String, phases: Vec<Phase>, unisolated: Option<String>, end: Option<String>,
        failure: Option<BuildFailure>, ended_at: Option<u64>,
    }
    /// A phase of an attempt.
    Phase {
        phase: String, started_at: u64, ended_at: Option<u64>, skipped: bool, exit_code: Option<i32>,
        memory_peak_bytes: Option<u64>,
    }
    /// The reason why an attempt failed, with the end of its output.
    BuildFailure { phase: Option<String>, reason: String, hint: String, output: String, }

    /// A rollout of one release to an environment, with its waves.
    Rollout {
        id: String, pipeline: String, environment: String, release: String, stable: Option<String>, purpose: Named<Purpose>,
        state: Named<RolloutState>, ended: bool, waits_for: Option<String>, paused: Option<Pause>, total: u64, counts: Counts, wave: u32,
        gate: Option<Gate>, waves: Vec<Wave>, verdicts: Vec<VerdictRecord>, failures: Vec<FailedTarget>, timing: Option<Timing>,
        preempted_by: Option<String>, why: Option<String>, by: String, created_at: u64, started_at: Option<u64>,
        ended_at: Option<u64>,
    }
    /// A pause or freeze, with its reason and author.
    Pause { why: String, by: String, at: u64, }
    /// Targets by state.
    Counts { waiting: u64, changing: u64, healthy: u64, failed: u64, reverting: u64, restored: u64, unreachable: u64, }
    /// The current gate.
    Gate { gate: String, elapsed_ms: u64, limit_ms: u64, }
    /// A wave; `number` counts from 1.
    Wave { number: u32, region: Option<String>, state: String, targets: TargetSet, counts: Counts, }
    /// A set of targets.
    TargetSet { count: u64, names: Vec<String>, }
    /// The verdict of a gate.
    VerdictRecord { wave: u32, gate: String, verdict: Named<Verdict>, evidence: String, by: String, at: u64, }
    /// A failure that a target reported.
    FailedTarget {
        target: String, reverting: bool, at: u64, service: Option<String>, reason: String, hint: String, exit: Option<String>,
        probe: Option<String>, output: String, output_blob: Option<String>,
    }
    /// The least time that a rollout and a rollback take.
    Timing { least_ms: u64, least_rollback_ms: u64, }

    /// A dry run.
    Plan {
        pipeline: String, environment: String, release: String, stable: Option<String>, purpose: Named<Purpose>, digest: String,
        blocked: Option<String>, total: u64, reachable: u64, waves: Vec<PlannedWave>, settings: PlanSettings, timing: Timing,
        warnings: Vec<String>,
    }
    /// A wave of a dry run.
    PlannedWave { number: u32, region: Option<String>, targets: TargetSet, gates: Vec<String>, }
    /// The settings that a plan was made with.
    PlanSettings {
        strategy: String, in_place: bool, bake_ms: u64, max_unavailable: u64, irreversible: bool,
    }

    /// An entry of the event log.
    Event {
        seq: String, at: u64, by: String, subject: String, kind: String, from: Option<String>, to: Option<String>,
        note: Option<String>, data: BTreeMap<String, String>,
    }
    /// The evidence about a build or rollout.
    Why { id: String, summary: String, hint: Option<String>, build: Option<Build>, rollout: Option<Rollout>, events: Vec<Event>, }

    /// A pipeline with its settings.
    Pipeline {
        name: String, source: Value, file: String, concurrency: u32, supersede: bool, retention_releases: u32,
        retention_age_ms: u64, newest_release: Option<String>, created_at: u64,
    }
    /// A hosted repository.
    Repository { name: String, path: String, default_branch: String, created_at: u64, refs: Vec<Ref>, }
    /// A ref of a hosted repository.
    Ref { name: String, commit: String, moved_at: u64, moved_by: String, }
    /// An artifact in the content store; `deleted_at` is set once its bytes are gone.
    Artifact {
        digest: String, size_bytes: u64, unpacked_bytes: u64, manifest: String, pipeline: String, commit: String,
        created_at: u64, deleted_at: Option<u64>,
    }
    /// A numbered release of a pipeline: an artifact with the pipeline file of its commit.
    Release {
        id: String, pipeline: String, number: u64, artifact: String, build: String, commit: String, git_ref: String, by: String,
        created_at: u64, file: Value,
    }
    /// An environment with the targets that its selector matches.
    Environment {
        name: String, selector: BTreeMap<String, String>, members: TargetSet, frozen: Option<Pause>, least_bake_ms: Option<u64>,
        first_wave_max: Option<String>, created_at: u64,
    }
    /// A pipeline's releases in an environment.
    Deployment {
        environment: String, pipeline: String, stable: Option<String>, rollout: Option<String>, next: Option<String>,
        former: Option<String>, history: Vec<Past>, quarantined: Vec<Quarantined>,
    }
    /// A rollout that ended.
    Past { release: String, rollout: String, end: String, at: u64, }
    /// A release that was rolled back.
    Quarantined { release: String, rollout: String, why: String, at: u64, }
    /// A target of the fleet, with its last reports.
    Target {
        name: String, region: String, zone: String, labels: BTreeMap<String, String>, address: String, connected: bool,
        cordoned: Option<String>, agent_version: String, joined_at: u64, observations: Vec<Observation>,
    }
    /// A target's last report about a pipeline.
    Observation {
        pipeline: String, release: Option<String>, progress: String, serving: bool, instances: Vec<Instance>,
        failure: Option<FailedTarget>, at: u64,
    }
    /// A running instance.
    Instance { service: String, release: String, ports: BTreeMap<String, u16>, state: String, restarts: u32, }
    /// The state of the cluster as one server sees it.
    Cluster {
        server: u64, leader: Option<u64>, term: u64, applied: Option<u64>, last_log: Option<u64>, snapshot: Option<u64>,
        log_bytes: u64, state_bytes: u64, snapshot_bytes: u64, stopped: Option<String>, generation: u64, epoch: u64,
        feature_level: u32, last_event: String, event_head: String, events: u64, targets: u64, targets_connected: u64,
        runners: u64, version: String,
    }
    /// Whether a server is ready.
    Ready { ready: bool, checks: Vec<ReadyCheck>, }
    /// One of its checks.
    ReadyCheck { name: String, ok: bool, detail: String, }
    /// A line of a log.
    LogLine { start: u64, end: u64, at: u64, stderr: bool, phase: String, text: String, }
}
