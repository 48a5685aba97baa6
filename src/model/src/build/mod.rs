//! Builds: one commit being built, in attempts.

pub(crate) mod apply;
mod assign;
pub mod decide;
mod index;
pub mod queue;
pub mod schedule;
mod state;

pub use self::assign::ASSIGNMENTS_AT_ONCE_MAX;
pub use self::index::{LiveAttempt, OpenBuild, PipelineLoad, QueuedBuild, QueuedByRef, RunnerLoad, queued_by_ref_prefix};
pub use self::state::{
    ACKNOWLEDGE_WITHIN, ATTEMPTS_MAX, Attempt, AttemptEnd, Build, BuildByCommit, BuildFailure, BuildState, Cause, Phase,
    PhaseRecord, RUNNER_GRACE, Resources, Runner,
};
