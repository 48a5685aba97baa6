//! Rollouts: moving an environment to a release, wave by wave.

pub(crate) mod apply;
pub mod assignment;
pub mod availability;
pub mod decide;
pub mod plan;
pub mod plan_input;
mod reason;
mod stage_clock;
mod state;
mod tally;

pub use self::{
    reason::{
        BlockReason, EndReason, Evidence, FailureCause, PauseReason, REASON_TEXT_BYTES_MAX, RollbackReason, SAMPLE_NAMES_MAX,
        StartReason, TargetSample, WaitReason,
    },
    stage_clock::StageClock,
    state::{
        Before, Deployment, ELAPSED_EVERY, FAILURES_KEPT_MAX, FORMER_RELEASES_KEPT, FailedTarget, Gate, HISTORY_MAX, OpenRollout,
        Past, Pause, Purpose, Quarantined, Rollout, RolloutState, Sets, Settings, Verdict, VerdictRecord, WaveStatus,
        deployment_key,
    },
    tally::WaveTally,
};
