//! What may be asked of state: one action a resource and verb. `apply` decides whether it is carried out.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::{
    archive::ArchiveEntry,
    build::{AttemptEnd, Cause, PhaseRecord, Resources},
    clock::MonotonicTime,
    cluster::Epoch,
    digest::Digest,
    event::{EventSeq, Subject},
    fleet::{PolicyLimits, TargetInfo, observation::TargetReports},
    ids::{BuildId, EnvironmentName, PipelineName, ReleaseId, RepositoryName, RolloutId, RunnerName, TargetName},
    pipeline::{Retention, Source},
    pipeline_file::PipelineFile,
    principal::Principal,
    repository::{CommitId, RefUpdate},
    rollout::{Evidence, Gate, Purpose, Verdict},
    units::{ByteSize, Millis, Timestamp},
};

/// The longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 200;

/// Something that someone wants done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    pub action: Action,
    pub principal: Principal,
    /// When, by the proposing leader's wall clock. State adopts it only as far as it is plausible: [`crate::clock::ClusterClock`].
    pub at: Timestamp,
    /// When, by the proposing leader's monotonic clock.
    #[serde(default)]
    pub monotonic: MonotonicTime,
    /// A retry with the same key gets the first answer.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// What the key stands for: a digest of the request. The key with another one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Digest>,
    /// The leadership that sent it, where an actor did.
    #[serde(default)]
    pub epoch: Option<Epoch>,
    /// Only while the subject's last change is this one (`If-Match`).
    #[serde(default)]
    pub if_revision: Option<u64>,
}

/// What a command led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What it was about.
    pub subject: Subject,
    /// What it created, such as the rollouts that a finished build started by itself.
    pub created: Vec<Subject>,
    /// The last event that it appended, or the last before it where it appended none.
    pub last_event: EventSeq,
    /// Whether this is the remembered answer to an earlier command with the same key.
    pub replayed: bool,
}

/// What, by resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// The cluster as a whole.
    Cluster(ClusterAction),
    Repository(RepositoryAction),
    Pipeline(PipelineAction),
    Build(BuildAction),
    Artifact(ArtifactAction),
    /// What left state for the archive.
    Archive(ArchiveAction),
    Environment(EnvironmentAction),
    /// Targets and runners.
    Fleet(FleetAction),
    Rollout(RolloutAction),
}

/// The cluster as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ClusterAction {
    /// A new leader begins; what carries an older epoch changes nothing from now on.
    BeginEpoch {
        /// Its Raft term.
        epoch: Epoch,
        server: u64,
    },
    /// Events up to and including `up_to` were sealed into a segment and leave the event log.
    ForgetEvents {
        /// The last event of the segment.
        up_to: EventSeq,
        /// The chain's hash over everything up to and including `up_to`.
        chain_head: Digest,
        segment: Digest,
    },
    /// The leader's wall clock is right although it is ahead of the adopted time by more than is plausible.
    ConfirmTime,
    /// The actor that drives `subject` fails again and again, or does so no longer.
    RecordActorFailure {
        /// Whose actor.
        subject: Subject,
        /// How it failed last; none: it works again, or is gone.
        why: Option<String>,
    },
}

/// Hosted repositories.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RepositoryAction {
    /// Host a new repository.
    Create {
        name: RepositoryName,
        /// The branch that `HEAD` names.
        default_branch: String,
    },
    /// Move refs, all or none, after the objects were stored.
    Push {
        repository: RepositoryName,
        /// From where to where.
        updates: Vec<RefUpdate>,
        /// The bundle with the new objects, where there are any.
        bundle: Option<(Digest, ByteSize)>,
    },
}

/// Pipelines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PipelineAction {
    /// Register a pipeline.
    Create {
        name: PipelineName,
        /// Where its commits come from.
        source: Source,
        /// The path of its pipeline file.
        file: String,
        /// How many builds at once.
        concurrency: u32,
        /// Whether a newer push supersedes queued builds.
        supersede: bool,
        /// What it keeps.
        retention: Retention,
    },
    /// Forget a pipeline that no environment runs.
    Remove { name: PipelineName },
    /// A moved ref was considered and leads to no build.
    Considered {
        name: PipelineName,
        git_ref: String,
        /// Where it stands now; none: it was deleted.
        commit: Option<CommitId>,
        /// Why it is not built.
        why: String,
    },
}

/// An artifact whose bytes are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredArtifact {
    /// SHA-256 of the compressed archive.
    pub digest: Digest,
    /// The size of the compressed archive.
    pub size: ByteSize,
    /// The size of what is unpacked.
    pub unpacked_size: ByteSize,
    /// The manifest's content.
    pub manifest: Digest,
}

/// Builds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum BuildAction {
    /// Build a commit.
    Request {
        pipeline: PipelineName,
        commit: CommitId,
        /// The ref that led to it.
        git_ref: String,
        /// What made us build.
        cause: Cause,
        /// Build it anew although it has a build.
        again: bool,
        /// What it asks of its runner.
        resources: Resources,
    },
    /// An artifact that was built elsewhere: begins at Uploading and ends there.
    ImportArtifact {
        pipeline: PipelineName,
        commit: CommitId,
        /// The ref that led to it.
        git_ref: String,
        artifact: StoredArtifact,
        file: Box<PipelineFile>,
    },
    /// Give a queued build to a runner: a new attempt.
    Assign { build: BuildId, runner: RunnerName },
    /// Give many queued builds to runners, each a new attempt. What cannot be assigned any more is left out.
    AssignBatch {
        /// At most [`crate::build::ASSIGNMENTS_AT_ONCE_MAX`].
        assignments: Vec<(BuildId, RunnerName)>,
    },
    /// The runner has it.
    Acknowledge {
        build: BuildId,
        attempt: u32,
        /// Why its phases are not isolated, where they are not.
        unisolated: Option<String>,
    },
    /// A phase began or ended.
    Progress {
        build: BuildId,
        attempt: u32,
        /// How the phase stands.
        phase: PhaseRecord,
    },
    /// The artifact is stored: the build is done and the release is made.
    Succeed {
        build: BuildId,
        attempt: u32,
        artifact: StoredArtifact,
        /// The pipeline file of the commit.
        file: Box<PipelineFile>,
        log: Option<Digest>,
    },
    /// The attempt ended without an artifact.
    End { build: BuildId, attempt: u32, end: AttemptEnd, log: Option<Digest> },
    /// Stop it.
    Cancel { build: BuildId },
    /// Queue a failed build again.
    Retry { build: BuildId },
}

/// Artifacts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ArtifactAction {
    /// Delete the bytes of artifacts that nothing could go back to.
    Delete { digests: Vec<Digest> },
}

/// What left state for the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArchiveAction {
    /// Remove from state what a segment holds. What something refers to stays and is due again a day later.
    Remove {
        /// At most [`crate::archive::ARCHIVED_AT_ONCE_MAX`], each due.
        entries: Vec<ArchiveEntry>,
        /// The segment that holds the records.
        segment: Digest,
    },
}

/// Environments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum EnvironmentAction {
    /// Create an environment.
    Create {
        name: EnvironmentName,
        /// The labels that select its targets.
        selector: BTreeMap<String, String>,
        policy: PolicyLimits,
    },
    /// Nothing may be deployed from now on.
    Freeze { name: EnvironmentName, why: String },
    /// Deploying is allowed again.
    Unfreeze { name: EnvironmentName },
    /// A release that was rolled back may be deployed again.
    ClearQuarantine { name: EnvironmentName, release: ReleaseId },
}

/// Targets and runners.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FleetAction {
    /// A server joins, or says something new of itself.
    Join {
        /// What its agent says.
        info: TargetInfo,
    },
    /// No rollout may change it.
    Cordon { name: TargetName, why: String },
    /// Rollouts may change it again.
    Uncordon { name: TargetName },
    /// Forget a target that is lost or cordoned, with everything that is kept of it.
    Remove { name: TargetName },
    /// These targets have been gone for longer than the grace, as the leader measured it. They count as lost until they connect again. One
    /// that is connected is left out.
    DeclareLost { targets: RoaringBitmap },
    /// Which agents a server is connected to now. At most once a second.
    Presence {
        server: u64,
        /// The targets whose agents are connected to it.
        connected: RoaringBitmap,
    },
    /// What targets report since the last batch of their server; proposed at most every 100 ms.
    Report {
        /// A target appears once for each message that its reports came with.
        targets: Vec<TargetReports>,
    },
    /// A runner joins, or offers other resources than before.
    RegisterRunner { name: RunnerName, resources: Resources },
}

/// Rollouts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RolloutAction {
    /// Move an environment to a release.
    Start {
        environment: EnvironmentName,
        release: ReleaseId,
        purpose: Purpose,
        why: Option<String>,
        /// Only if the plan is still this one.
        if_plan: Option<Digest>,
    },
    /// What blocked it is gone.
    Unblock { rollout: RolloutId },
    /// Tell targets of the present wave to run the release.
    ChangeTargets {
        rollout: RolloutId,
        targets: RoaringBitmap,
        /// Targets of the wave that are left out because their agents are not connected.
        unreachable: RoaringBitmap,
    },
    /// How long the present gate has been watched.
    RecordElapsed {
        rollout: RolloutId,
        /// The wave that was watched.
        wave: u32,
        /// The gate that was watched.
        gate: Gate,
        /// How many targets had been changed and reverted: a later batch has all of its time.
        targets: u64,
        /// How long in all.
        elapsed: Millis,
    },
    /// What a gate concluded.
    RecordVerdict { rollout: RolloutId, wave: u32, gate: Gate, verdict: Verdict, evidence: Evidence },
    /// Tell touched targets to go back.
    RevertTargets { rollout: RolloutId, targets: RoaringBitmap },
    /// Rolling back is over.
    FinishRollback {
        rollout: RolloutId,
        /// Targets whose agents are not connected; they converge when they return.
        unreachable: RoaringBitmap,
    },
    /// Stand still.
    Pause { rollout: RolloutId, why: String },
    /// Go on.
    Resume { rollout: RolloutId },
    /// Stop and go back.
    Abort { rollout: RolloutId, why: String },
    /// Pass the present gate, whatever it would say.
    Promote { rollout: RolloutId, why: String },
}

macro_rules! into_action {
    ($($action:ident => $variant:ident),*) => {$(
        impl From<$action> for Action {
            fn from(action: $action) -> Self {
                Action::$variant(action)
            }
        }
    )*};
}

into_action!(
    ClusterAction => Cluster,
    RepositoryAction => Repository,
    PipelineAction => Pipeline,
    BuildAction => Build,
    ArtifactAction => Artifact,
    ArchiveAction => Archive,
    EnvironmentAction => Environment,
    FleetAction => Fleet,
    RolloutAction => Rollout
);
