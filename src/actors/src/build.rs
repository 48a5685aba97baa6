//! One build: gives its attempt up when the runner does not take it, has lost it, or is silent for longer than the grace.

use std::time::{Duration, Instant};

use super::{
    drive::{After, Drive, DriveError},
    leader::Leading,
};
use swell_model::{
    build::{AttemptEnd, Build, decide::lost},
    command::BuildAction,
    ids::BuildId,
    tables::{ReadTables, key},
    units::Millis,
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
    const NAME: &'static str = "build";

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
        let heard = leading.board.heard(&attempt.runner, (self.id, attempt.number));
        let Some(why) = lost(attempt, heard, Millis(since.elapsed().as_millis() as u64)) else { return Ok(After::Look(TICK)) };
        let end = AttemptEnd::Lost(why);
        leading.propose(Self::NAME, BuildAction::End { build: self.id, attempt: attempt.number, end, log: None }).await?;
        Ok(After::Look(Duration::ZERO))
    }
}
