//! The scheduler: gives queued builds to runners as `model::decide::schedule` says.

use std::time::Duration;

use super::{
    drive::{After, Drive, DriveError},
    leader::Leading,
};
use swell_model::{build::queue::scheduling, command::BuildAction, interfaces::ProposeError};

/// How often it looks when nothing happens: a runner may have come.
const TICK: Duration = Duration::from_secs(2);

/// Drives the queue.
pub(super) struct SchedulerDrive;

impl Drive for SchedulerDrive {
    const NAME: &'static str = "scheduler";

    async fn look(&mut self, leading: &Leading) -> Result<After, DriveError> {
        let connected = leading.board.connected();
        let found = scheduling(&leading.node.view(), |runner| connected.contains(runner))?;
        if found.queue.is_empty() {
            return Ok(After::Wait);
        }
        for (build, runner) in found.schedule().assign {
            match leading.propose(Self::NAME, BuildAction::Assign { build, runner }).await {
                Ok(_) => {}
                // Canceled or assigned meanwhile: the next look sees it.
                Err(ProposeError::Rejected(rejection)) => tracing::debug!(%build, %rejection, "an assignment was rejected"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(After::Look(TICK))
    }
}
