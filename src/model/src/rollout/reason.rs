//! Why a rollout waits, goes back or ended, and on what evidence a gate was judged: values that rules, simulation and tests compare.
//! Sentences for people are made of them at the edge; what is text here was written by a person or by an agent.

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::{
    apply::context::Draft,
    event::{DataKey, cut},
    fleet::{Freeze, Target},
    ids::{RolloutId, TargetName},
    principal::Principal,
    rejection::Rejection,
    rollout::Gate,
    tables::{ReadTables, TablesError, key},
    units::Millis,
};

/// The most targets that a sample names.
pub const SAMPLE_NAMES_MAX: usize = 5;

/// The longest text of a person or an agent that a reason keeps, in bytes.
pub const REASON_TEXT_BYTES_MAX: usize = 2000;

/// Some targets of a set, and how many it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetSample {
    /// The names of the lowest numbers, at most [`SAMPLE_NAMES_MAX`]. A target that was removed since has none.
    pub names: Vec<TargetName>,
    /// The size of the set.
    pub count: u64,
}

impl TargetSample {
    /// Reads the names of the first of `targets`.
    ///
    /// # Errors
    /// [`TablesError`] when state cannot be read.
    pub fn of<T: ReadTables>(tables: &T, targets: &RoaringBitmap) -> Result<Self, TablesError> {
        let mut names = Vec::new();
        for index in targets.iter().take(SAMPLE_NAMES_MAX) {
            names.extend(tables.get::<Target>(&key(index))?.map(|target| target.info.name));
        }
        Ok(Self { names, count: targets.len() })
    }
}

/// Why a rollout has not begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockReason {
    /// Another rollout of this pipeline in this environment has not ended.
    Rollout(RolloutId),
    /// The environment is frozen.
    Frozen(Freeze),
}

/// Why a rollout was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartReason {
    /// A person or a program asked, perhaps with a text.
    Requested(Option<String>),
    /// The pipeline file deploys this branch by itself.
    Branch(String),
}

/// Why a rollout is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// A person asked, with this text.
    Requested(String),
    /// A gate failed and the release is irreversible: a person promotes or aborts.
    Irreversible(Evidence),
}

/// Why targets go back from a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RollbackReason {
    /// A gate failed.
    Verdict {
        /// Counted from 0.
        wave: u32,
        gate: Gate,
        evidence: Evidence,
    },
    /// A person aborted the rollout.
    Aborted { by: Principal, text: String },
    /// A person asked for an earlier release.
    Requested { by: Principal, text: Option<String> },
}

/// Why a rollout ended in another state than Deployed, or how far going back came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Aborted before any target was changed.
    Aborted { by: Principal, text: String },
    /// A later rollout took its place in the queue.
    Superseded { by: RolloutId },
    /// What blocked it is gone, and the rules refuse it now.
    Refused(Box<Rejection>),
    /// A rollback that a person asked for took its place.
    Preempted { by: RolloutId, text: Option<String> },
    /// It went back before any target was changed.
    NothingChanged,
    /// Every changed target is back on the stable release, or stopped where there is none, but for those that cannot be reached.
    Restored {
        /// How many targets converge when they return.
        unreachable: u64,
    },
    /// Targets could not go back: a person is needed.
    NotRestored {
        /// How many.
        targets: u64,
    },
    /// A gate of a rollback failed, and there is nothing better to go back to.
    Verdict {
        /// Counted from 0.
        wave: u32,
        gate: Gate,
        evidence: Evidence,
    },
}

/// Why a gate passed or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The wave converged. All are numbers of its targets.
    Converged {
        healthy: u64,
        failed: u64,
        /// Served nothing before they were changed and are not healthy: they count against no one.
        down_before: u64,
        /// Not connected or cordoned; they converge later.
        left_out: u64,
    },
    /// The wave baked. Numbers of all targets that were changed so far.
    Baked { healthy: u64, changed: u64, duration: Millis },
    /// More targets failed than may.
    TooManyFailures { failed: TargetSample, max_failures: u64, cause: Option<FailureCause> },
    /// No target of the wave is healthy, however many may fail.
    NoneHealthy { failed: TargetSample, cause: Option<FailureCause> },
    /// Targets that are down use up what may be unavailable, and the batch's deadline is over.
    UnavailabilityExhausted { unchanged: TargetSample, unavailable: TargetSample },
    /// A person promoted the rollout.
    Promoted(String),
}

/// Why the first target of a failing gate failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCause {
    /// What its agent reported, at most [`REASON_TEXT_BYTES_MAX`] long.
    Reported(String),
    /// It was not healthy within this time.
    Deadline(Millis),
}

/// What a rollout waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitReason {
    /// What keeps it from starting.
    Blocked(BlockReason),
    /// The leader to carry out the next step.
    NextStep,
    /// A person to resume it.
    Paused { by: Principal, reason: PauseReason },
    /// Targets to become healthy.
    Convergence { targets: TargetSample, remaining: Millis },
    /// The bake to end.
    Bake { elapsed: Millis, duration: Millis },
    /// Other targets to be available again, before these may be changed.
    Availability { targets: TargetSample },
    /// Targets that have not been changed to connect, or to be lost.
    Connection { targets: TargetSample },
    /// Targets that were changed to connect again, or to be lost.
    Reconnection { targets: TargetSample },
    /// Targets that were healthy and are lost: too many to judge the wave without them.
    HealthyTargetsLost { targets: TargetSample },
    /// Every target of the wave has left the environment.
    NoTargetsLeft {
        /// Counted from 0.
        wave: u32,
    },
    /// No target of the wave could be changed.
    NoTargetsConnected {
        /// Counted from 0.
        wave: u32,
    },
    /// Every target of the wave that was changed was down before, so that nothing tells how the release does.
    NoTargetsHealthy {
        /// Counted from 0.
        wave: u32,
        targets: TargetSample,
    },
    /// Targets to be back on the stable release.
    Restoration { targets: TargetSample },
}

impl WaitReason {
    /// Whether nothing but a person's decision, or a target that returns, ends the wait: promote or abort.
    pub fn needs_person(&self) -> bool {
        match self {
            WaitReason::Paused { .. }
            | WaitReason::HealthyTargetsLost { .. }
            | WaitReason::NoTargetsLeft { .. }
            | WaitReason::NoTargetsConnected { .. }
            | WaitReason::NoTargetsHealthy { .. } => true,
            WaitReason::Blocked(_)
            | WaitReason::NextStep
            | WaitReason::Convergence { .. }
            | WaitReason::Bake { .. }
            | WaitReason::Availability { .. }
            | WaitReason::Connection { .. }
            | WaitReason::Reconnection { .. }
            | WaitReason::Restoration { .. } => false,
        }
    }
}

/// A reason that an event tells: a stable code and numbers in its data, a person's text in its note.
pub(crate) trait EventReason {
    fn describe(&self, event: &mut Draft);
}

impl EventReason for Evidence {
    fn describe(&self, event: &mut Draft) {
        match self {
            Evidence::Converged { healthy, failed, down_before, left_out } => {
                event.data(DataKey::Reason, "converged").data(DataKey::Healthy, healthy).data(DataKey::Failed, failed);
                event.data(DataKey::DownBefore, down_before).data(DataKey::LeftOut, left_out);
            }
            Evidence::Baked { healthy, changed, duration } => {
                event
                    .data(DataKey::Reason, "baked")
                    .data(DataKey::Healthy, healthy)
                    .data(DataKey::Changed, changed)
                    .data(DataKey::Duration, duration);
            }
            Evidence::TooManyFailures { failed, max_failures, cause } => {
                event
                    .data(DataKey::Reason, "too-many-failures")
                    .data(DataKey::Failed, failed.count)
                    .data(DataKey::MaxFailures, max_failures);
                describe_cause(cause.as_ref(), event);
            }
            Evidence::NoneHealthy { failed, cause } => {
                event.data(DataKey::Reason, "none-healthy").data(DataKey::Failed, failed.count);
                describe_cause(cause.as_ref(), event);
            }
            Evidence::UnavailabilityExhausted { unchanged, unavailable } => {
                event.data(DataKey::Reason, "unavailability-exhausted");
                event.data(DataKey::Unchanged, unchanged.count).data(DataKey::Unavailable, unavailable.count);
            }
            Evidence::Promoted(text) => {
                event.data(DataKey::Reason, "promoted").note(text);
            }
        }
    }
}

fn describe_cause(cause: Option<&FailureCause>, event: &mut Draft) {
    match cause {
        Some(FailureCause::Reported(text)) => event.note(text),
        Some(FailureCause::Deadline(deadline)) => event.data(DataKey::Deadline, deadline),
        None => event,
    };
}

impl EventReason for BlockReason {
    fn describe(&self, event: &mut Draft) {
        match self {
            BlockReason::Rollout(id) => event.data(DataKey::Reason, "rollout").data(DataKey::Rollout, id),
            BlockReason::Frozen(freeze) => event.data(DataKey::Reason, "frozen").data(DataKey::By, &freeze.by).note(&freeze.why),
        };
    }
}

impl EventReason for PauseReason {
    fn describe(&self, event: &mut Draft) {
        match self {
            PauseReason::Requested(text) => {
                event.data(DataKey::Reason, "requested").note(text);
            }
            PauseReason::Irreversible(evidence) => {
                evidence.describe(event);
                event.data(DataKey::Reason, "irreversible");
            }
        }
    }
}

impl EventReason for RollbackReason {
    fn describe(&self, event: &mut Draft) {
        match self {
            RollbackReason::Verdict { wave, gate, evidence } => {
                evidence.describe(event);
                event.data(DataKey::Wave, wave + 1).data(DataKey::Gate, gate.name());
            }
            RollbackReason::Aborted { by, text } => {
                event.data(DataKey::Reason, "aborted").data(DataKey::By, by).note(text);
            }
            RollbackReason::Requested { by, text } => {
                event.data(DataKey::Reason, "requested").data(DataKey::By, by);
                if let Some(text) = text {
                    event.note(text);
                }
            }
        }
    }
}

impl EventReason for EndReason {
    fn describe(&self, event: &mut Draft) {
        match self {
            EndReason::Aborted { by, text } => {
                event.data(DataKey::Reason, "aborted").data(DataKey::By, by).note(text);
            }
            EndReason::Superseded { by } => {
                event.data(DataKey::Reason, "superseded").data(DataKey::Rollout, by);
            }
            EndReason::Refused(rejection) => {
                event.data(DataKey::Reason, "refused").data(DataKey::Code, rejection.code()).note(rejection.to_string());
            }
            EndReason::Preempted { by, text } => {
                event.data(DataKey::Reason, "preempted").data(DataKey::Rollout, by);
                if let Some(text) = text {
                    event.note(text);
                }
            }
            EndReason::NothingChanged => {
                event.data(DataKey::Reason, "nothing-changed");
            }
            EndReason::Restored { unreachable } => {
                event.data(DataKey::Reason, "restored").data(DataKey::Unreachable, unreachable);
            }
            EndReason::NotRestored { targets } => {
                event.data(DataKey::Reason, "not-restored").data(DataKey::Targets, targets);
            }
            EndReason::Verdict { wave, gate, evidence } => {
                evidence.describe(event);
                event.data(DataKey::Wave, wave + 1).data(DataKey::Gate, gate.name());
            }
        }
    }
}

/// `text` within the bound of what a reason keeps.
pub(crate) fn bounded(text: &str) -> String {
    cut(text, REASON_TEXT_BYTES_MAX)
}
