//! What an agent reports of a pipeline's release on its target, and the evidence that it kept of a failure.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::change::Change;
use crate::{
    digest::Digest,
    ids::{AgentId, PipelineName, PortName, ReleaseId, ServiceName},
    tables::{Key, Record, Table, key},
    units::Timestamp,
};

/// How far a target has come with the release that it should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Progress {
    /// Fetching, verifying or unpacking.
    Fetching,
    /// Its instances start and are probed.
    Starting,
    /// Every service has passed its probes for `min_healthy` without a restart.
    Healthy,
    /// It was healthy and is no longer.
    Unhealthy,
    /// It did not become healthy; what served before goes on where that is possible.
    Failed,
    /// Nothing should run and something still drains or stops.
    Stopping,
    /// Nothing should run and nothing does.
    Stopped,
}

impl Progress {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Progress::Fetching => "fetching",
            Progress::Starting => "starting",
            Progress::Healthy => "healthy",
            Progress::Unhealthy => "unhealthy",
            Progress::Failed => "failed",
            Progress::Stopping => "stopping",
            Progress::Stopped => "stopped",
        }
    }
}

/// What an instance is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// Started, not yet proven.
    Starting,
    /// Answers its probes; traffic may come.
    Serving,
    /// Does not answer its probes, or waits to be started again.
    Unhealthy,
    /// Finishes what it has; no new traffic.
    Draining,
}

/// One running instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceObserved {
    pub service: ServiceName,
    pub release: ReleaseId,
    pub ports: BTreeMap<PortName, u16>,
    pub state: InstanceState,
    /// How often it was started again.
    pub restarts: u32,
}

/// The evidence of a failure on a target, for `swell why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetFailure {
    /// The service that failed, where it was one.
    pub service: Option<ServiceName>,
    /// What happened, in a sentence.
    pub reason: String,
    /// What to do about it.
    pub hint: String,
    /// What the process ended with, such as `exit 3` or `signal 9 (out of memory)`.
    pub exit: Option<String>,
    /// What the last probe answered.
    pub probe: Option<String>,
    /// The end of its output, at most 4 KiB.
    pub output: String,
    /// Up to 64 KiB of its output, in the content store.
    pub output_blob: Option<Digest>,
}

/// How a target stands with one pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub pipeline: PipelineName,
    /// The release that it was assigned last; none: nothing should run.
    pub release: Option<ReleaseId>,
    pub progress: Progress,
    /// Whether a healthy instance of every service answers, whichever its release.
    pub serving: bool,
    /// Running instances, of any release.
    pub instances: Vec<InstanceObserved>,
    /// What went wrong last with that release.
    pub failure: Option<TargetFailure>,
}

impl Report {
    /// SHA-256 of its MessagePack with field names.
    pub fn hash(&self) -> Digest {
        // A struct of plain fields always serializes.
        Digest::of(&rmp_serde::to_vec_named(self).unwrap_or_default())
    }
}

/// A sum over the reports of a target, by which agent and server tell whether they know the same ones. Order does not matter, and one
/// report is replaced in constant time: the wrapping sum of the first 16 bytes of each [`Report::hash`]. Guards against loss, not
/// against forgery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReportsHash(pub u128);

impl ReportsHash {
    /// Counts `report` in.
    pub fn add(&mut self, report: &Report) {
        self.0 = self.0.wrapping_add(Self::part(report));
    }

    /// Takes `report`, which was counted in, out again.
    pub fn remove(&mut self, report: &Report) {
        self.0 = self.0.wrapping_sub(Self::part(report));
    }

    fn part(report: &Report) -> u128 {
        let hash = report.hash().0;
        u128::from_le_bytes(std::array::from_fn(|byte| hash[byte]))
    }
}

/// Which message of which agent a report came with: orders the reports of a target, whatever sessions and servers they came through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportOrigin {
    pub agent: AgentId,
    /// How often that agent was started.
    pub incarnation: u64,
    /// Place of the message within the incarnation, from 1.
    pub sequence: u64,
}

impl ReportOrigin {
    /// Whether it says more than `known`. Another agent always does: it is let in only once the one before is gone.
    pub fn is_newer_than(&self, known: &Self) -> bool {
        self.agent != known.agent || (self.incarnation, self.sequence) > (known.incarnation, known.sequence)
    }
}

/// What one target reports in a batch: the newest report on each pipeline that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetReports {
    /// Number of the target.
    pub target: u32,
    /// The newest message that `reports` were taken from.
    pub origin: ReportOrigin,
    pub reports: Vec<Report>,
}

/// The last report of a target on a pipeline, as state keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    pub target: u32,
    pub report: Report,
    /// Which message it came with; what is not newer changes nothing.
    pub origin: ReportOrigin,
    /// When the report was applied.
    pub at: Timestamp,
}

impl Record for Observation {
    const TABLE: Table = Table::Observations;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        observation_key(&self.report.pipeline, self.target)
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Observation(record))
    }
}

/// The key of an observation.
pub fn observation_key(pipeline: &PipelineName, target: u32) -> Key {
    key(pipeline.as_str()).then(target)
}
