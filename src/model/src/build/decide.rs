//! When an attempt is given up: the runner did not take it, no longer has it, or has been silent for too long.

use crate::{
    build::{ACKNOWLEDGE_WITHIN, Attempt, RUNNER_GRACE},
    units::Millis,
};

/// What is known of an attempt at its runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The runner has it.
    Has,
    /// The runner is there and does not have it.
    Gone,
    /// The runner has been silent for so long.
    Silent(Millis),
}

/// Why `attempt` is lost; none: it is not. `watched` is how long the present leader has watched it: a new leader gives every runner the
/// whole grace.
pub fn lost(attempt: &Attempt, heard: Heard, watched: Millis) -> Option<String> {
    let runner = &attempt.runner;
    match heard {
        Heard::Has => None,
        _ if watched < ACKNOWLEDGE_WITHIN => None,
        Heard::Silent(silent) if silent.min(watched) < RUNNER_GRACE => None,
        Heard::Silent(_) => Some(format!("runner {runner} has been silent for more than {RUNNER_GRACE}")),
        Heard::Gone if attempt.acknowledged => Some(format!("runner {runner} no longer has it")),
        Heard::Gone => Some(format!("runner {runner} did not take it within {ACKNOWLEDGE_WITHIN}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::units::Timestamp;

    fn attempt(acknowledged: bool) -> Attempt {
        Attempt {
            number: 1,
            runner: "r1".parse().unwrap(),
            assigned_at: Timestamp(0),
            acknowledged,
            phases: Vec::new(),
            unisolated: None,
            log: None,
            end: None,
            ended_at: None,
        }
    }

    #[test]
    fn attempt_is_lost_when_its_runner_does_not_take_it_or_stays_silent_beyond_the_grace() {
        let lost = |acknowledged, heard, watched| lost(&attempt(acknowledged), heard, Millis(watched));
        assert_eq!(lost(true, Heard::Has, 3_600_000), None);
        assert_eq!(lost(false, Heard::Gone, 4_999), None);
        assert!(lost(false, Heard::Gone, 5_000).unwrap().contains("did not take it"));
        assert!(lost(true, Heard::Gone, 5_000).unwrap().contains("no longer has it"));
        assert_eq!(lost(true, Heard::Silent(Millis(29_999)), 60_000), None);
        assert_eq!(lost(true, Heard::Silent(Millis(60_000)), 29_999), None, "a new leader gives the whole grace");
        assert!(lost(true, Heard::Silent(Millis(30_000)), 30_000).unwrap().contains("silent"));
    }
}
