//! What may be asked of state: one action a resource and verb. `apply` decides whether it is carried out.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::{
    build::{AttemptEnd, Cause, PhaseRecord, Resources},
    cluster::Epoch,
    digest::Digest,
    event::{EventSeq, Subject},
    fleet::{PolicyLimits, TargetInfo, observation::TargetReports},
    ids::{BuildId, EnvironmentName, PipelineName, ReleaseId, RepositoryName, RolloutId, RunnerName, TargetName},
    pipeline::{Retention, Source},
    pipeline_file::PipelineFile,
    principal::Principal,
    repository::{CommitId, RefUpdate},
    rollout::{Gate, Purpose, Verdict},
    units::{ByteSize, Millis, Timestamp},
};

/// The longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 200;

/// Something that someone wants done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// What.
    pub action: Action,
    /// Who.
    pub principal: Principal,
    /// When, by the proposing leader's clock.
    pub at: Timestamp,
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
    /// Hosted repositories.
    Repository(RepositoryAction),
    /// Pipelines.
    Pipeline(PipelineAction),
    /// Builds.
    Build(BuildAction),
    /// Artifacts.
    Artifact(ArtifactAction),
    /// Environments.
    Environment(EnvironmentAction),
    /// Targets and runners.
    Fleet(FleetAction),
    /// Rollouts.
    Rollout(RolloutAction),
}

/// The cluster as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ClusterAction {
    /// A new leader begins; what carries an older epoch changes nothing from now on.
    BeginEpoch {
        /// Its Raft term.
        epoch: Epoch,
        /// The server.
        server: u64,
    },
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
        /// Its name.
        name: RepositoryName,
        /// The branch that `HEAD` names.
        default_branch: String,
    },
    /// Move refs, all or none, after the objects were stored.
    Push {
        /// Whose refs.
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
        /// Its name.
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
    Remove {
        /// Which.
        name: PipelineName,
    },
    /// A moved ref was looked at and leads to no build.
    Considered {
        /// Whose.
        name: PipelineName,
        /// Which ref.
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
        /// Whose.
        pipeline: PipelineName,
        /// Which commit.
        commit: CommitId,
        /// The ref that led to it.
        git_ref: String,
        /// What made us build.
        cause: Cause,
        /// Build it anew although it has a build.
        again: bool,
        /// The room it asks for.
        resources: Resources,
    },
    /// An artifact that was built elsewhere: begins at Uploading and ends there.
    ImportArtifact {
        /// Whose.
        pipeline: PipelineName,
        /// From which commit.
        commit: CommitId,
        /// The ref that led to it.
        git_ref: String,
        /// What is stored.
        artifact: StoredArtifact,
        /// The pipeline file.
        file: Box<PipelineFile>,
    },
    /// Give a queued build to a runner: a new attempt.
    Assign {
        /// Which build.
        build: BuildId,
        /// To whom.
        runner: RunnerName,
    },
    /// The runner has it.
    Acknowledge {
        /// Which build.
        build: BuildId,
        /// Which attempt.
        attempt: u32,
        /// Why its phases are not isolated, where they are not.
        unisolated: Option<String>,
    },
    /// A phase began or ended.
    Progress {
        /// Which build.
        build: BuildId,
        /// Which attempt.
        attempt: u32,
        /// How the phase stands.
        phase: PhaseRecord,
    },
    /// The artifact is stored: the build is done and the release is made.
    Succeed {
        /// Which build.
        build: BuildId,
        /// Which attempt.
        attempt: u32,
        /// What is stored.
        artifact: StoredArtifact,
        /// The pipeline file of the commit.
        file: Box<PipelineFile>,
        /// The whole log.
        log: Option<Digest>,
    },
    /// The attempt ended without an artifact.
    End {
        /// Which build.
        build: BuildId,
        /// Which attempt.
        attempt: u32,
        /// How.
        end: AttemptEnd,
        /// The whole log.
        log: Option<Digest>,
    },
    /// Stop it.
    Cancel {
        /// Which build.
        build: BuildId,
    },
    /// Queue a failed build again.
    Retry {
        /// Which build.
        build: BuildId,
    },
}

/// Artifacts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ArtifactAction {
    /// Delete the bytes of artifacts that nothing could go back to.
    Delete {
        /// Which.
        digests: Vec<Digest>,
    },
}

/// Environments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum EnvironmentAction {
    /// Create an environment.
    Create {
        /// Its name.
        name: EnvironmentName,
        /// The labels that select its targets.
        selector: BTreeMap<String, String>,
        /// Its policy.
        policy: PolicyLimits,
    },
    /// Nothing may be deployed from now on.
    Freeze {
        /// Where.
        name: EnvironmentName,
        /// Why.
        why: String,
    },
    /// Deploying is allowed again.
    Unfreeze {
        /// Where.
        name: EnvironmentName,
    },
    /// A release that was rolled back may be deployed again.
    ClearQuarantine {
        /// Where.
        name: EnvironmentName,
        /// Which.
        release: ReleaseId,
    },
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
    Cordon {
        /// Which.
        name: TargetName,
        /// Why.
        why: String,
    },
    /// Rollouts may change it again.
    Uncordon {
        /// Which.
        name: TargetName,
    },
    /// Which agents a server is connected to now. At most once a second.
    Presence {
        /// The server.
        server: u64,
        /// The targets whose agents are connected to it.
        connected: RoaringBitmap,
    },
    /// What targets report since the last batch of their server; proposed at most every 100 ms.
    Report {
        /// A target appears once for each message that its reports came with.
        targets: Vec<TargetReports>,
    },
    /// A runner joins, or has other room than before.
    RegisterRunner {
        /// Its name.
        name: RunnerName,
        /// Its room.
        resources: Resources,
    },
}

/// Rollouts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RolloutAction {
    /// Move an environment to a release.
    Start {
        /// Where.
        environment: EnvironmentName,
        /// To which release.
        release: ReleaseId,
        /// What for.
        purpose: Purpose,
        /// Why.
        why: Option<String>,
        /// Only if the plan is still this one.
        if_plan: Option<Digest>,
    },
    /// What blocked it is gone.
    Unblock {
        /// Which.
        rollout: RolloutId,
    },
    /// Tell targets of the present wave to run the release.
    ChangeTargets {
        /// Which.
        rollout: RolloutId,
        /// The targets.
        targets: RoaringBitmap,
        /// Targets of the wave that are left out because their agents are not connected.
        unreachable: RoaringBitmap,
    },
    /// How long the present gate has been watched.
    RecordElapsed {
        /// Which.
        rollout: RolloutId,
        /// The wave that was watched.
        wave: u32,
        /// The gate that was watched.
        gate: Gate,
        /// How long in all.
        elapsed: Millis,
    },
    /// What a gate concluded.
    RecordVerdict {
        /// Which.
        rollout: RolloutId,
        /// Of which wave.
        wave: u32,
        /// Which gate.
        gate: Gate,
        /// What.
        verdict: Verdict,
        /// On what grounds.
        evidence: String,
    },
    /// Tell touched targets to go back.
    RevertTargets {
        /// Which.
        rollout: RolloutId,
        /// The targets.
        targets: RoaringBitmap,
    },
    /// Rolling back is over.
    FinishRollback {
        /// Which.
        rollout: RolloutId,
        /// Targets whose agents are not connected; they converge when they return.
        unreachable: RoaringBitmap,
    },
    /// Stand still.
    Pause {
        /// Which.
        rollout: RolloutId,
        /// Why.
        why: String,
    },
    /// Go on.
    Resume {
        /// Which.
        rollout: RolloutId,
    },
    /// Stop and go back.
    Abort {
        /// Which.
        rollout: RolloutId,
        /// Why.
        why: String,
    },
    /// Pass the present gate, whatever it would say.
    Promote {
        /// Which.
        rollout: RolloutId,
        /// Why.
        why: String,
    },
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
    EnvironmentAction => Environment,
    FleetAction => Fleet,
    RolloutAction => Rollout
);
