//! What the end of a phase means: whose fault it was, in words, and what to do about it. Pure; must not know how phases run.

use swell_model::{
    build::{AttemptEnd, BuildFailure, Phase},
    units::{ByteSize, Millis},
};
use swell_sandbox::shim::{ExitRecord, Outcome};

/// The most of a phase's output that is kept with its failure, in bytes.
pub(super) const OUTPUT_BYTES_MAX: usize = 4096;

/// The longest part of a script that is named in a sentence.
const SCRIPT_CHARS_MAX: usize = 60;

/// What a phase was given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    pub phase: Phase,
    pub script: &'a str,
    pub memory: ByteSize,
    pub disk: ByteSize,
    /// Of the whole attempt.
    pub timeout: Millis,
}

/// What made the runner end a phase before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndedBy {
    /// Nothing: it ended by itself, or its limits ended it.
    Itself,
    /// Somebody stopped the attempt.
    Cancel,
    /// Its files had grown to so many bytes.
    Disk(ByteSize),
    /// Somebody asked its shim to end, and it was not the runner.
    Stranger,
}

/// Whether the attempt goes on after a phase.
pub(super) fn ended_well(exit: &ExitRecord, ended_by: EndedBy) -> bool {
    matches!(ended_by, EndedBy::Itself | EndedBy::Stranger) && exit.succeeded()
}

/// How the attempt ends for what became of a phase; `None` where it goes on. `output` are the phase's last words, where it did not.
pub(super) fn verdict(
    given: Given<'_>,
    exit: &ExitRecord,
    ended_by: EndedBy,
    disk_is_full: bool,
    output: String,
) -> Option<AttemptEnd> {
    if ended_well(exit, ended_by) {
        return None;
    }
    let script = in_a_sentence(given.script);
    let failure =
        |reason: String, hint: &str| BuildFailure { phase: given.phase, reason, hint: hint.to_owned(), output: cut(output) };
    if ended_by == EndedBy::Cancel {
        return Some(AttemptEnd::Canceled);
    }
    if let EndedBy::Disk(used) = ended_by {
        let reason = format!("{script} was killed: its files took {used} of disk, more than the {} of [build].disk", given.disk);
        return Some(AttemptEnd::Failed(failure(reason, "write less, or raise [build].disk in the pipeline file")));
    }
    if ended_by == EndedBy::Stranger {
        return Some(AttemptEnd::Lost(format!("{script} was asked to end from outside, and {}", how_it_ended(&exit.outcome))));
    }
    if let Outcome::Failed(why) = &exit.outcome {
        return Some(AttemptEnd::Lost(format!("{script} could not be started: {}: {}; {}", why.what, why.why, why.way_out)));
    }
    if exit.timed_out {
        return Some(AttemptEnd::TimedOut(failure(timed_out(given), TIMEOUT_HINT)));
    }
    if exit.oom_killed {
        let peak = exit.memory_peak_bytes.map_or_else(String::new, |peak| format!(", peak {}", ByteSize(peak)));
        let reason = format!("{script} was killed: out of memory (limit {}{peak})", given.memory);
        return Some(AttemptEnd::Failed(failure(
            reason,
            "use less memory, such as fewer parallel jobs, or raise [build].memory",
        )));
    }
    if disk_is_full {
        return Some(AttemptEnd::Lost(format!("the runner's disk is full: {script} {}", how_it_ended(&exit.outcome))));
    }
    let hint = match (&exit.outcome, given.phase) {
        (Outcome::Exited(126 | 127), _) => {
            "a command was not found or cannot be executed: install it in the image, or correct its name"
        }
        (Outcome::Signaled(_), _) => "the phase's last output says more",
        (_, Phase::Test) => "a test failed: the phase's last output says which",
        _ => "the phase's last output says why; run the same script in a clean checkout to repeat it",
    };
    Some(AttemptEnd::Failed(failure(format!("{script} {}", how_it_ended(&exit.outcome)), hint)))
}

const TIMEOUT_HINT: &str = "make it faster, or raise [build].timeout, which is for all phases together";

/// The end of an attempt that had no time left for a phase.
pub(super) fn no_time_left(given: Given<'_>) -> AttemptEnd {
    let (reason, hint) = (timed_out(given), TIMEOUT_HINT.to_owned());
    AttemptEnd::TimedOut(BuildFailure { phase: given.phase, reason, hint, output: String::new() })
}

fn timed_out(given: Given<'_>) -> String {
    format!("{} was not done after the {} of [build].timeout", in_a_sentence(given.script), given.timeout)
}

fn how_it_ended(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Exited(code) => format!("ended with exit code {code}"),
        Outcome::Signaled(number) => match nix::sys::signal::Signal::try_from(*number) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {number}"),
        },
        Outcome::Failed(failure) => format!("could not be started: {}", failure.why),
    }
}

/// What a phase's record says: a signal counts as 128 plus its number.
pub(super) fn exit_code(outcome: &Outcome) -> Option<i32> {
    match outcome {
        Outcome::Exited(code) => Some(*code),
        Outcome::Signaled(number) => Some(128 + number),
        Outcome::Failed(_) => None,
    }
}

/// The script as it can be named: its first line that does something.
pub(super) fn in_a_sentence(script: &str) -> String {
    let mut lines = script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let first = lines.next().unwrap_or_default();
    let is_cut = lines.next().is_some() || first.chars().count() > SCRIPT_CHARS_MAX;
    let shown: String = first.chars().take(SCRIPT_CHARS_MAX).collect();
    format!("`{shown}{}`", if is_cut { " …" } else { "" })
}

/// The end of a text, where the reason usually stands.
pub(super) fn cut(mut text: String) -> String {
    text.drain(..text.ceil_char_boundary(text.len().saturating_sub(OUTPUT_BYTES_MAX)));
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::units::Timestamp;
    use swell_sandbox::shim::Failure;

    const GIVEN: Given<'_> = Given {
        phase: Phase::Test,
        script: "\n# the tests\nmake check\n",
        memory: ByteSize(4 << 30),
        disk: ByteSize(1 << 30),
        timeout: Millis(1_800_000),
    };

    fn exit(outcome: Outcome) -> ExitRecord {
        ExitRecord {
            outcome,
            started_at: Timestamp(1),
            ended_at: Timestamp(2),
            took: Millis(1),
            oom_killed: false,
            timed_out: false,
            stopped: false,
            memory_peak_bytes: Some(4 << 30),
            cpu_time: None,
            output_bytes: 0,
            truncated_bytes: 0,
        }
    }

    fn reason(exit: &ExitRecord, ended_by: EndedBy, disk_is_full: bool) -> String {
        match verdict(GIVEN, exit, ended_by, disk_is_full, "FAIL: one".into()) {
            Some(AttemptEnd::Failed(failure) | AttemptEnd::TimedOut(failure)) => {
                assert_eq!(failure.output, "FAIL: one");
                failure.reason
            }
            Some(AttemptEnd::Lost(why)) => format!("lost: {why}"),
            Some(end) => format!("{end:?}"),
            None => "goes on".to_owned(),
        }
    }

    #[test]
    fn phase_end_is_told_from_every_other() {
        let two = exit(Outcome::Exited(2));
        assert_eq!(reason(&exit(Outcome::Exited(0)), EndedBy::Itself, false), "goes on");
        assert_eq!(reason(&two, EndedBy::Itself, false), "`make check` ended with exit code 2");
        assert_eq!(reason(&exit(Outcome::Signaled(11)), EndedBy::Itself, false), "`make check` was killed by SIGSEGV");
        let oom = ExitRecord { oom_killed: true, ..two.clone() };
        assert_eq!(
            reason(&oom, EndedBy::Itself, true),
            "`make check` was killed: out of memory (limit 4.0GiB, peak 4.0GiB)".replace(".0", "")
        );
        let late = ExitRecord { timed_out: true, ..exit(Outcome::Signaled(9)) };
        assert_eq!(reason(&late, EndedBy::Itself, false), "`make check` was not done after the 30m of [build].timeout");
        assert!(reason(&two, EndedBy::Itself, true).starts_with("lost: the runner's disk is full"));
        assert_eq!(reason(&exit(Outcome::Exited(0)), EndedBy::Cancel, false), "Canceled");
        assert_eq!(reason(&exit(Outcome::Exited(0)), EndedBy::Stranger, false), "goes on");
        assert!(reason(&two, EndedBy::Stranger, false).starts_with("lost: `make check` was asked to end from outside"));
        assert!(reason(&two, EndedBy::Disk(ByteSize(2 << 30)), false).contains("took 2GiB of disk, more than the 1GiB"));
        let failure = Failure { what: "create the container".into(), why: "no".into(), way_out: "doctor".into() };
        assert!(
            reason(&exit(Outcome::Failed(failure)), EndedBy::Itself, false)
                .starts_with("lost: `make check` could not be started")
        );
    }

    #[test]
    fn long_script_and_output_are_cut() {
        assert_eq!(in_a_sentence("make\nmake check"), "`make …`");
        assert_eq!(in_a_sentence(&"x".repeat(100)), format!("`{} …`", "x".repeat(60)));
        assert_eq!(cut("é".repeat(5000)), "é".repeat(2048));
    }
}
