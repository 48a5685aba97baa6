//! Rollouts: moving an environment to a release, wave by wave.

pub(crate) mod apply;
pub mod assignment;
pub mod availability;
pub mod decide;
pub mod plan;
pub mod plan_input;
mod state;

pub use self::state::{
    Before, Blocked, Deployment, ELAPSED_EVERY, FAILURES_KEPT_MAX, FORMER_RELEASES_KEPT, FailedTarget, Gate, HISTORY_MAX,
    OpenRollout, Past, Pause, Purpose, Quarantined, Rollout, RolloutState, Sets, Settings, Verdict, VerdictRecord,
    deployment_key,
};
