//! What time it is in state, however wrong the leader's wall clock may be: one wrong second of it must not expire what a year should.
//! Knows nothing of who leads or of what the time is used for.

use serde::{Deserialize, Serialize};

use crate::units::{Millis, Timestamp};

/// How far the wall clock may be ahead of what is plausible and still be adopted with one command.
pub const CLOCK_STEP_MAX: Millis = Millis::from_secs(5);

/// How many times faster than monotonic time the adopted clock may catch up with the wall clock, besides its own pace.
const CATCH_UP: u64 = 5;

/// How long the wall clock must be ahead by the same length before a single server may confirm it.
pub const CLOCK_CONFIRM_AFTER: Millis = Millis::from_secs(600);

/// Monotonic time of the process that proposed a command. Times of two runs cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MonotonicTime {
    /// A random number for each start of a process.
    pub run: u64,
    /// Since an arbitrary moment of the run.
    pub elapsed: Millis,
}

/// The wall clock is ahead of what can be adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockDisagreement {
    /// When it was seen first, by the monotonic time of the run.
    pub since: Millis,
    /// The wall clock less the monotonic time: the same while both advance alike.
    offset: u64,
}

/// The adopted time, and what the next one is compared with. It never runs backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClusterClock {
    pub now: Timestamp,
    /// Of the newest command.
    last: MonotonicTime,
    pub disagreement: Option<ClockDisagreement>,
}

impl ClusterClock {
    /// Adopts `wall` as far as it is plausible `monotonic` time after the last command.
    ///
    /// - A wall clock that is ahead is adopted up to [`CLOCK_STEP_MAX`] a command beyond the time that passed, and never faster than
    ///   six times as fast as monotonic time, so that a flood of commands adopts a jump no sooner than a few would.
    /// - Behind one that was set back, the adopted time goes on at half speed instead of standing still.
    pub fn advance(&mut self, wall: Timestamp, monotonic: MonotonicTime) {
        let same_run = monotonic.run == self.last.run;
        let passed = if same_run { monotonic.elapsed.0.saturating_sub(self.last.elapsed.0) } else { 0 };
        // Of another process it is not known how much time passed.
        let step = if same_run { passed.saturating_mul(CATCH_UP).min(CLOCK_STEP_MAX.0) } else { CLOCK_STEP_MAX.0 };
        let elapsed = if same_run { monotonic.elapsed.max(self.last.elapsed) } else { monotonic.elapsed };
        self.last = MonotonicTime { run: monotonic.run, elapsed };
        if self.now == Timestamp(0) {
            self.now = wall;
            return;
        }
        let earliest = self.now.0.saturating_add(passed / 2);
        let latest = self.now.0.saturating_add(passed).saturating_add(step);
        self.now = Timestamp(wall.0.clamp(earliest, latest));
        self.disagreement = (wall.0 > latest).then(|| {
            let offset = wall.0.saturating_sub(elapsed.0);
            let known = self.disagreement.filter(|known| same_run && known.offset.abs_diff(offset) <= CLOCK_STEP_MAX.0);
            known.unwrap_or(ClockDisagreement { since: elapsed, offset })
        });
    }

    /// Whether the wall clock has been ahead by the same length for [`CLOCK_CONFIRM_AFTER`].
    pub fn is_steadily_ahead(&self) -> bool {
        self.disagreement.is_some_and(|known| self.last.elapsed.0.saturating_sub(known.since.0) >= CLOCK_CONFIRM_AFTER.0)
    }

    /// Adopts `wall` whatever it is, unless it is earlier.
    pub fn confirm(&mut self, wall: Timestamp) {
        self.now = self.now.max(wall);
        self.disagreement = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const YEAR: u64 = 365 * 86_400_000;
    const START: u64 = 50 * YEAR;

    fn at(run: u64, elapsed: u64) -> MonotonicTime {
        MonotonicTime { run, elapsed: Millis(elapsed) }
    }

    /// A clock that has seen a correct wall clock for `secs` seconds.
    fn running(secs: u64) -> ClusterClock {
        let mut clock = ClusterClock::default();
        for second in 0..=secs {
            clock.advance(Timestamp(START + second * 1000), at(1, second * 1000));
        }
        clock
    }

    #[test]
    fn clock_follows_a_correct_wall_clock_exactly() {
        assert_eq!(running(100).now, Timestamp(START + 100_000));
        assert_eq!(running(100).disagreement, None);
    }

    #[test]
    fn clock_is_confirmable_after_ten_minutes_of_one_offset() {
        let mut clock = running(1);
        for second in 2..700 {
            clock.advance(Timestamp(START + YEAR + second * 1000), at(1, second * 1000));
            assert_eq!(clock.is_steadily_ahead(), second >= 602, "after {second} s");
        }
        let wall = Timestamp(START + YEAR + 700_000);
        clock.confirm(wall);
        assert_eq!((clock.now, clock.disagreement), (wall, None));
    }

    #[test]
    fn clock_is_not_confirmable_when_the_offset_changes() {
        let mut clock = running(1);
        for second in 2..2000 {
            let jump = YEAR + second / 300 * 60_000;
            clock.advance(Timestamp(START + jump + second * 1000), at(1, second * 1000));
            assert!(!clock.is_steadily_ahead(), "after {second} s");
        }
    }

    proptest! {
        #[test]
        fn clock_never_runs_backwards_nor_jumps(
            steps in prop::collection::vec((0u64..60_000, prop::sample::select(vec![0i64, 0, 0, 3_000, -3_000, 1, -1]), 0u64..20), 1..200)
        ) {
            let (mut clock, mut elapsed, mut offset, mut run) = (running(1), 1000, 0i64, 1);
            for (passed, jump, restart) in steps {
                elapsed += passed;
                // A jump of one means a year; another process now and then.
                offset = match jump { 1 => YEAR as i64, -1 => -(YEAR as i64), small => small + if offset.unsigned_abs() < YEAR { 0 } else { offset } };
                run += u64::from(restart == 0);
                let before = clock;
                let wall = Timestamp((START + elapsed).saturating_add_signed(offset));
                clock.advance(wall, at(run, elapsed));
                let most = if run == before.last.run { passed + (passed * CATCH_UP).min(CLOCK_STEP_MAX.0) } else { CLOCK_STEP_MAX.0 };
                prop_assert!(clock.now >= before.now, "{:?} after {:?}", clock, before);
                prop_assert!(clock.now.0 - before.now.0 <= most, "{:?} after {:?}", clock, before);
            }
        }
    }
}
