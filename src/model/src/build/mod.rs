//! Builds: one commit being built, in attempts.

pub(crate) mod apply;
pub mod decide;
pub mod queue;
pub mod schedule;
mod state;

pub use self::state::{
    ACKNOWLEDGE_WITHIN, ATTEMPTS_MAX, Attempt, AttemptEnd, Build, BuildByCommit, BuildFailure, BuildState, Cause, OpenBuild,
    Phase, PhaseRecord, RUNNER_GRACE, Resources, Runner,
};
