//! A build: one commit being built, in attempts. The build half of the state machine of a run.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{archive::Archivable, change::Change, release::Uses};
use crate::{
    digest::Digest,
    ids::{BuildId, PipelineName, ReleaseId, RunnerName},
    principal::Principal,
    repository::CommitId,
    tables::{Key, Record, Table, key},
    units::{ByteSize, Millis, Timestamp},
};

/// The most attempts that a build has; only failures of the infrastructure lead to another one.
pub const ATTEMPTS_MAX: usize = 4;

/// How long a runner may take to acknowledge an assignment.
pub const ACKNOWLEDGE_WITHIN: Millis = Millis::from_secs(5);

/// How long a runner may be silent before its attempts are lost.
pub const RUNNER_GRACE: Millis = Millis::from_secs(30);

/// Where a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildState {
    /// Waiting for a runner.
    Queued,
    /// Checking out, or running `[build]`.
    Building,
    /// Running `[test]`.
    Testing,
    /// Running `[package]`.
    Packaging,
    /// Storing the artifact.
    Uploading,
    /// Done: the artifact is stored and the release exists.
    ReadyToDeploy,
    /// The checkout, `[build]` or `[package]` failed, or what `[package]` left cannot be an artifact.
    BuildFailed,
    /// `[test]` failed.
    TestFailed,
    /// A person or a deleted pipeline stopped it.
    Canceled,
    /// A newer push took its place in the queue.
    Superseded,
    /// It ran longer than it may.
    TimedOut,
    /// The infrastructure failed it on every attempt; a person is needed.
    Exhausted,
}

impl BuildState {
    /// Every state.
    pub const ALL: [BuildState; 12] = [
        BuildState::Queued,
        BuildState::Building,
        BuildState::Testing,
        BuildState::Packaging,
        BuildState::Uploading,
        BuildState::ReadyToDeploy,
        BuildState::BuildFailed,
        BuildState::TestFailed,
        BuildState::Canceled,
        BuildState::Superseded,
        BuildState::TimedOut,
        BuildState::Exhausted,
    ];

    /// Whether an attempt is running.
    pub fn is_running(self) -> bool {
        matches!(self, BuildState::Building | BuildState::Testing | BuildState::Packaging | BuildState::Uploading)
    }

    /// Whether nothing more will happen by itself.
    pub fn is_end(self) -> bool {
        !self.is_running() && self != BuildState::Queued
    }

    /// Whether the state machine has an arrow from here to `next`.
    pub fn may_become(self, next: BuildState) -> bool {
        use BuildState::*;
        match (self, next) {
            (Queued, Building | Canceled | Superseded | Uploading) => true,
            (Building, Testing | BuildFailed) | (Testing, Packaging | TestFailed) | (Packaging, Uploading | BuildFailed) => true,
            (Uploading, ReadyToDeploy | BuildFailed) => true,
            (from, Queued | Canceled | TimedOut | Exhausted) => from.is_running(),
            _ => false,
        }
    }

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            BuildState::Queued => "queued",
            BuildState::Building => "building",
            BuildState::Testing => "testing",
            BuildState::Packaging => "packaging",
            BuildState::Uploading => "uploading",
            BuildState::ReadyToDeploy => "ready-to-deploy",
            BuildState::BuildFailed => "build-failed",
            BuildState::TestFailed => "test-failed",
            BuildState::Canceled => "canceled",
            BuildState::Superseded => "superseded",
            BuildState::TimedOut => "timed-out",
            BuildState::Exhausted => "exhausted",
        }
    }
}

impl fmt::Display for BuildState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A part of an attempt, in the order in which they run. One that the pipeline file does not give is recorded as skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// A clean checkout of exactly the commit, and reading the pipeline file.
    Checkout,
    /// `[build]`.
    Build,
    /// `[test]`.
    Test,
    /// `[package]`.
    Package,
    /// Archiving `$OUT` and storing it.
    Upload,
}

impl Phase {
    /// All, in order.
    pub const ALL: [Phase; 5] = [Phase::Checkout, Phase::Build, Phase::Test, Phase::Package, Phase::Upload];

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Checkout => "checkout",
            Phase::Build => "build",
            Phase::Test => "test",
            Phase::Package => "package",
            Phase::Upload => "upload",
        }
    }

    /// The build's state while this phase runs.
    pub const fn state(self) -> BuildState {
        match self {
            Phase::Checkout | Phase::Build => BuildState::Building,
            Phase::Test => BuildState::Testing,
            Phase::Package => BuildState::Packaging,
            Phase::Upload => BuildState::Uploading,
        }
    }

    /// The build's end when this phase's own work fails (a script that exits non-zero is never retried by itself).
    pub const fn failed_state(self) -> BuildState {
        match self {
            Phase::Test => BuildState::TestFailed,
            _ => BuildState::BuildFailed,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a phase went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseRecord {
    pub phase: Phase,
    pub started_at: Timestamp,
    /// When it ended; none while it runs.
    pub ended_at: Option<Timestamp>,
    /// Whether the pipeline file does not give it.
    pub skipped: bool,
    /// What the container's main process ended with; a signal counts as 128 plus its number.
    pub exit_code: Option<i32>,
    /// The most memory that its container used.
    pub memory_peak: Option<ByteSize>,
    /// The CPU time that its container used.
    pub cpu_time: Option<Millis>,
}

/// Why an attempt ended without an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildFailure {
    pub phase: Phase,
    /// What happened, in a sentence.
    pub reason: String,
    /// What to do about it.
    pub hint: String,
    /// The last output of the phase, at most 4 KiB.
    pub output: String,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptEnd {
    /// The artifact is stored.
    Succeeded,
    /// The commit's own fault: a script failed, the pipeline file is wrong. Never retried by itself.
    Failed(BuildFailure),
    /// It ran longer than it may.
    TimedOut(BuildFailure),
    /// The infrastructure's fault: another attempt follows, or the build is exhausted.
    Lost(String),
    /// Someone stopped it.
    Canceled,
}

/// One go at a build, on one runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    pub runner: RunnerName,
    /// When it was assigned.
    pub assigned_at: Timestamp,
    /// Whether the runner said that it has it.
    pub acknowledged: bool,
    /// How its phases went so far.
    pub phases: Vec<PhaseRecord>,
    /// Whether its builds were isolated; if not, why not.
    pub unisolated: Option<String>,
    /// Its whole log in the content store, once it has ended.
    pub log: Option<Digest>,
    /// How it ended.
    pub end: Option<AttemptEnd>,
    pub ended_at: Option<Timestamp>,
}

/// What made Groundswell build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A push moved a ref.
    Push,
    /// Someone asked for it.
    Manual,
    /// An artifact that was built elsewhere.
    Import,
}

/// What a build takes of its runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    pub memory: ByteSize,
}

/// What a build asks for that does not say.
impl Default for Resources {
    fn default() -> Self {
        Self { cpu_millis: 1000, memory: ByteSize(1 << 30) }
    }
}

impl Resources {
    /// What is left when `taken` is taken; never less than nothing.
    pub fn less(self, taken: Self) -> Self {
        let memory = ByteSize(self.memory.0.saturating_sub(taken.memory.0));
        Self { cpu_millis: self.cpu_millis.saturating_sub(taken.cpu_millis), memory }
    }

    /// These and `more`.
    pub fn plus(self, more: Self) -> Self {
        let memory = ByteSize(self.memory.0.saturating_add(more.memory.0));
        Self { cpu_millis: self.cpu_millis.saturating_add(more.cpu_millis), memory }
    }

    /// Whether `asked` fits.
    pub fn holds(self, asked: Self) -> bool {
        asked.cpu_millis <= self.cpu_millis && asked.memory <= self.memory
    }
}

/// One commit being built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    pub id: BuildId,
    pub pipeline: PipelineName,
    pub commit: CommitId,
    /// The ref that led to it, such as `refs/heads/main`.
    pub git_ref: String,
    /// What made us build.
    pub cause: Cause,
    pub state: BuildState,
    /// What it asks of its runner.
    pub resources: Resources,
    /// Its attempts, oldest first.
    pub attempts: Vec<Attempt>,
    /// Whether someone asked to stop it; the attempt ends as soon as the runner has stopped it.
    pub cancel_asked: bool,
    /// The artifact, once it is stored.
    pub artifact: Option<Digest>,
    /// The release, once it exists.
    pub release: Option<ReleaseId>,
    pub by: Principal,
    pub created_at: Timestamp,
    /// When it last entered the queue.
    pub queued_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    /// The log index of its last change: its ETag.
    pub revision: u64,
}

impl Build {
    /// The attempt that has not ended, if there is one.
    pub fn live_attempt(&self) -> Option<&Attempt> {
        self.attempts.last().filter(|attempt| attempt.end.is_none())
    }

    /// The branch, where the ref is one.
    pub fn branch(&self) -> Option<&str> {
        self.git_ref.strip_prefix("refs/heads/")
    }
}

impl Record for Build {
    const TABLE: Table = Table::Builds;
    const IS_FOLLOWED: bool = true;
    const HAS_USES: bool = true;

    fn key(&self) -> Key {
        key(self.id.0)
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Build(record))
    }

    fn uses(&self) -> Uses {
        let ended = self.ended_at.map(|at| (Archivable::Build(self.id), self.pipeline.clone(), at));
        Uses { named: self.release.iter().cloned().collect(), ended, ..Uses::default() }
    }
}

/// The newest build of a commit of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildByCommit {
    pub pipeline: PipelineName,
    pub commit: CommitId,
    /// Its build.
    pub build: BuildId,
}

impl Record for BuildByCommit {
    const TABLE: Table = Table::BuildsByCommit;

    fn key(&self) -> Key {
        key(self.pipeline.as_str()).then(self.commit.as_str())
    }
}

/// A machine that runs builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runner {
    pub name: RunnerName,
    /// What it offers to builds.
    pub resources: Resources,
    pub registered_at: Timestamp,
}

impl Record for Runner {
    const TABLE: Table = Table::Runners;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        key(self.name.as_str())
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Runner(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_state_that_is_an_end_has_no_successor_and_every_other_can_be_canceled() {
        for state in BuildState::ALL {
            if state.is_end() {
                assert!(BuildState::ALL.iter().all(|next| !state.may_become(*next)), "{state} is an end");
            } else {
                assert!(state.may_become(BuildState::Canceled), "{state} can be canceled");
            }
        }
    }

    #[test]
    fn phases_in_order_lead_from_the_queue_to_ready() {
        let mut state = BuildState::Queued;
        for phase in Phase::ALL {
            assert!(state == phase.state() || state.may_become(phase.state()), "{state} → {phase}");
            state = phase.state();
        }
        assert!(state.may_become(BuildState::ReadyToDeploy));
    }
}
