//! One build: gives its attempt up when the runner does not take it, has lost it, or is silent for longer than the grace.

use std::time::{Duration, Instant};

use super::{
    board::Heard,
    drive::{After, Drive, DriveError},
    leader::Leading,
};
use crate::model::{
    build::{ACKNOWLEDGE_WITHIN, AttemptEnd, Build, RUNNER_GRACE},
    command::BuildAction,
    ids::BuildId,
    tables::{ReadTables, key},
};

/// How often a build at work looks at the clock.
const TICK: Duration = Duration::from_secs(1);

/// Drives one build.
pub(super) struct BuildDrive {
    id: BuildId,
    /// The attempt that this leader watches, and since when.
    watched: Option<(u32, Instant)>,
}

impl BuildDrive {
    pub fn new(id: BuildId) -> Self {
        Self { id, watched: None }
    }
}

impl Drive for BuildDrive {
    async fn look(&mut self, leading: &Leading) -> Result<After, DriveError> {
        let Some(build) = leading.node.view().get::<Build>(&key(self.id.0))? else { return Ok(After::Done) };
        if build.state.is_end() {
            return Ok(After::Done);
        }
        // Without an attempt it is the scheduler's; an assignment is an event that wakes this actor.
        let Some(attempt) = build.live_attempt() else { return Ok(After::Wait) };
        let since = match self.watched {
            Some((number, since)) if number == attempt.number => since,
            _ => Instant::now(),
        };
        self.watched = Some((attempt.number, since));
        let why = match leading.board.heard(&attempt.runner, (self.id, attempt.number)) {
            Heard::Has => return Ok(After::Look(TICK)),
            _ if since.elapsed() < ACKNOWLEDGE_WITHIN.as_duration() => return Ok(After::Look(TICK)),
            Heard::Silent(silent) if silent.min(since.elapsed()) < RUNNER_GRACE.as_duration() => return Ok(After::Look(TICK)),
            Heard::Silent(_) => format!("runner {} has been silent for more than {RUNNER_GRACE}", attempt.runner),
            Heard::Gone if attempt.acknowledged => format!("runner {} no longer has it", attempt.runner),
            Heard::Gone => format!("runner {} did not take it within {ACKNOWLEDGE_WITHIN}", attempt.runner),
        };
        let end = AttemptEnd::Lost(why);
        leading.propose("build", BuildAction::End { build: self.id, attempt: attempt.number, end, log: None }).await?;
        Ok(After::Look(Duration::ZERO))
    }
}
