//! The stable names of events and of their data: the one table that turns them into text and back. Knows nothing of who follows which.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{build::BuildState, ids::IdError, rollout::RolloutState};

macro_rules! names {
    ($(#[$doc:meta])* $name:ident, $expected:literal; $($(#[$variant_doc:meta])* $variant:ident => $text:literal,)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// Every one of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The stable name.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(IdError { text: text.to_owned(), expected: $expected }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

names! {
    /// What happened, as a noun and a verb in the past. Stable: it is written into the log.
    EventKind, "a kind of event, such as `rollout.paused`";
    /// A new leadership began.
    ClusterEpochBegun => "cluster.epoch-begun",
    /// The leader's wall clock was adopted although it was ahead by more than is plausible.
    ClusterTimeConfirmed => "cluster.time-confirmed",
    /// Sealed events left the event log; `segment` names where they are.
    ClusterEventsForgotten => "cluster.events-forgotten",
    /// The actor that drives the subject keeps failing.
    ActorFailed => "actor.failed",
    ActorRecovered => "actor.recovered",
    RepositoryCreated => "repository.created",
    /// A push moved, created or deleted a ref.
    RepositoryRefMoved => "repository.ref-moved",
    PipelineCreated => "pipeline.created",
    PipelineRemoved => "pipeline.removed",
    /// A moved ref was considered and leads to no build.
    PipelinePushSkipped => "pipeline.push-skipped",
    BuildQueued => "build.queued",
    /// The infrastructure failed its attempt; another follows.
    BuildRequeued => "build.requeued",
    /// A queued build was given to a runner: a new attempt.
    BuildAssigned => "build.assigned",
    /// The runner acknowledged the attempt.
    BuildStarted => "build.started",
    BuildTestingStarted => "build.testing-started",
    BuildPackagingStarted => "build.packaging-started",
    BuildUploadingStarted => "build.uploading-started",
    BuildPhaseEnded => "build.phase-ended",
    /// An attempt ended by a fault of the infrastructure.
    BuildAttemptLost => "build.attempt-lost",
    /// The runner stops the attempt first.
    BuildCancelRequested => "build.cancel-requested",
    BuildSucceeded => "build.succeeded",
    BuildFailed => "build.failed",
    BuildCanceled => "build.canceled",
    BuildSuperseded => "build.superseded",
    BuildTimedOut => "build.timed-out",
    BuildExhausted => "build.exhausted",
    /// Left state for the archive.
    BuildArchived => "build.archived",
    /// Its bytes may be deleted from the content store.
    ArtifactDeleted => "artifact.deleted",
    ReleaseCreated => "release.created",
    /// An automatic rollout could not start.
    ReleaseDeploySkipped => "release.deploy-skipped",
    /// Left state for the archive.
    ReleaseArchived => "release.archived",
    EnvironmentCreated => "environment.created",
    EnvironmentFrozen => "environment.frozen",
    EnvironmentUnfrozen => "environment.unfrozen",
    EnvironmentReleaseQuarantined => "environment.release-quarantined",
    EnvironmentQuarantineCleared => "environment.quarantine-cleared",
    TargetJoined => "target.joined",
    TargetCordoned => "target.cordoned",
    TargetUncordoned => "target.uncordoned",
    /// Forgotten, with everything that was kept of it.
    TargetRemoved => "target.removed",
    RunnerRegistered => "runner.registered",
    /// Agents connected or disconnected.
    FleetPresenceChanged => "fleet.presence-changed",
    /// Targets were declared lost, or connected again after they were.
    FleetLossChanged => "fleet.loss-changed",
    /// Targets reported what they run.
    FleetReported => "fleet.reported",
    RolloutCreated => "rollout.created",
    RolloutBlocked => "rollout.blocked",
    RolloutStarted => "rollout.started",
    RolloutCanaryCheckStarted => "rollout.canary-check-started",
    /// It goes on beyond its first wave or batch.
    RolloutExpanded => "rollout.expanded",
    RolloutWaveStarted => "rollout.wave-started",
    /// Targets were assigned the release.
    RolloutTargetsChanged => "rollout.targets-changed",
    /// Reports of targets changed its counts.
    RolloutProgressed => "rollout.progressed",
    RolloutGateJudged => "rollout.gate-judged",
    RolloutPaused => "rollout.paused",
    RolloutResumed => "rollout.resumed",
    RolloutAbortRequested => "rollout.abort-requested",
    RolloutRollbackStarted => "rollout.rollback-started",
    /// Touched targets were assigned the stable release again.
    RolloutTargetsReverted => "rollout.targets-reverted",
    RolloutDeployed => "rollout.deployed",
    RolloutRolledBack => "rollout.rolled-back",
    RolloutCanceled => "rollout.canceled",
    RolloutPreempted => "rollout.preempted",
    RolloutFailed => "rollout.failed",
    /// Left state for the archive.
    RolloutArchived => "rollout.archived",
}

names! {
    /// The name of a value in [`Event::data`]. Stable.
    DataKey, "a key of an event's data, such as `pipeline`";
    Attempt => "attempt",
    Artifact => "artifact",
    Build => "build",
    By => "by",
    Changed => "changed",
    Code => "code",
    Commit => "commit",
    Connected => "connected",
    Count => "count",
    Deadline => "deadline",
    Disconnected => "disconnected",
    DownBefore => "down_before",
    Duration => "duration",
    Environment => "environment",
    ExitCode => "exit_code",
    Failed => "failed",
    Found => "found",
    Gate => "gate",
    Healthy => "healthy",
    LeftOut => "left_out",
    Lost => "lost",
    MaxFailures => "max_failures",
    Phase => "phase",
    Pipeline => "pipeline",
    Reason => "reason",
    Ref => "ref",
    Region => "region",
    Release => "release",
    Reports => "reports",
    Restored => "restored",
    Rollout => "rollout",
    Runner => "runner",
    Segment => "segment",
    Server => "server",
    Size => "size",
    Skipped => "skipped",
    Targets => "targets",
    Unavailable => "unavailable",
    Unchanged => "unchanged",
    Unreachable => "unreachable",
    UpTo => "up_to",
    Verdict => "verdict",
    Wave => "wave",
    Waves => "waves",
    Zone => "zone",
}

impl EventKind {
    /// What happens when a build enters `state` from another one; [`EventKind::BuildQueued`] is for a new build.
    pub const fn of_build_state(state: BuildState) -> Self {
        match state {
            BuildState::Queued => Self::BuildRequeued,
            BuildState::Building => Self::BuildStarted,
            BuildState::Testing => Self::BuildTestingStarted,
            BuildState::Packaging => Self::BuildPackagingStarted,
            BuildState::Uploading => Self::BuildUploadingStarted,
            BuildState::ReadyToDeploy => Self::BuildSucceeded,
            BuildState::BuildFailed | BuildState::TestFailed => Self::BuildFailed,
            BuildState::Canceled => Self::BuildCanceled,
            BuildState::Superseded => Self::BuildSuperseded,
            BuildState::TimedOut => Self::BuildTimedOut,
            BuildState::Exhausted => Self::BuildExhausted,
        }
    }

    /// What happens when a rollout enters `state`.
    pub const fn of_rollout_state(state: RolloutState) -> Self {
        match state {
            RolloutState::Blocked => Self::RolloutBlocked,
            RolloutState::Deploying => Self::RolloutStarted,
            RolloutState::CanaryCheck => Self::RolloutCanaryCheckStarted,
            RolloutState::RollingOut => Self::RolloutExpanded,
            RolloutState::RollingBack => Self::RolloutRollbackStarted,
            RolloutState::Deployed => Self::RolloutDeployed,
            RolloutState::RolledBack => Self::RolloutRolledBack,
            RolloutState::Canceled => Self::RolloutCanceled,
            RolloutState::Preempted => Self::RolloutPreempted,
            RolloutState::Failed => Self::RolloutFailed,
        }
    }

    /// Whether a build enters a state with it; the event's `from` and `to` name the states.
    pub fn is_build_transition(self) -> bool {
        self == Self::BuildQueued || BuildState::ALL.iter().any(|state| Self::of_build_state(*state) == self)
    }

    /// Whether a rollout leaves one state for another with it; the event's `from` and `to` name the states.
    pub fn is_rollout_transition(self) -> bool {
        self != Self::RolloutBlocked && RolloutState::ALL.iter().any(|state| Self::of_rollout_state(*state) == self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn event_kinds_follow_one_grammar_and_are_read_back_from_their_names() {
        for kind in EventKind::ALL {
            let (noun, verb) = kind.as_str().split_once('.').unwrap();
            let is_word = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            assert!(is_word(noun) && !noun.contains('-') && is_word(verb), "{kind}");
            assert_eq!(kind.as_str().parse(), Ok(*kind));
            assert_eq!(serde_json::to_string(kind).unwrap(), format!("\"{kind}\""));
        }
        assert!("build.state".parse::<EventKind>().is_err());
    }

    #[test]
    fn data_keys_are_read_back_from_their_names() {
        for key in DataKey::ALL {
            assert_eq!(rmp_serde::from_slice::<DataKey>(&rmp_serde::to_vec(key).unwrap()).unwrap(), *key);
        }
    }
}
