//! What is kept of a failure, for `swell why`: how the process ended, what the last probe answered, the end of its output. Blocking where
//! it reads. Must not know what follows from a failure.

use std::path::Path;

use nix::sys::signal::Signal;

use super::{decide::Fault, journal::Instance, refusal::Refusal};
use swell_model::{fleet::observation::TargetFailure, units::Millis};
use swell_sandbox::{
    shim::{ExitRecord, Outcome},
    spool::SpoolReader,
};

/// Most bytes of output in a report.
pub(super) const OUTPUT_SHORT_BYTES: usize = 4 << 10;
/// Most bytes of output in the content store.
pub(super) const OUTPUT_LONG_BYTES: usize = 64 << 10;
/// A release that fails again and again has its output sent to the content store so often at most: it keeps what it gets.
const OUTPUT_EVERY: Millis = Millis::from_secs(600);
/// Most bytes of one text of a report.
const TEXT_BYTES_MAX: usize = 1 << 10;

/// What was last seen of an instance.
#[derive(Debug, Clone, Default)]
pub(super) struct LastSeen {
    /// The end of its process; `None` while it runs.
    pub exit: Option<ExitRecord>,
    /// What the last probe that failed answered.
    pub probe: Option<String>,
    /// Whether the disk was full when it ended without a word.
    pub disk_full: bool,
    /// Why it was not even started.
    pub refusal: Option<Refusal>,
    /// The end of its output.
    pub output: Vec<u8>,
}

/// The last [`OUTPUT_LONG_BYTES`] of what the shim in `dir` kept.
pub(super) fn output_tail(dir: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reader = SpoolReader::open_tail(dir, OUTPUT_LONG_BYTES as u64);
    let read = reader.and_then(|mut reader| {
        while let Some(frame) = reader.next_frame()? {
            bytes.extend(frame.bytes);
        }
        Ok(())
    });
    if let Err(error) = read {
        tracing::warn!(dir = %dir.display(), %error, "failed to read the output of an instance");
    }
    bytes.drain(..bytes.len().saturating_sub(OUTPUT_LONG_BYTES));
    bytes
}

/// Whether output is to be sent to the content store: it is longer than a report takes, and of this release (`before` is its last
/// failure) there is none yet, or only an old one, of monotonic `kept_at`.
pub(super) fn is_worth_uploading(output: &[u8], before: Option<&TargetFailure>, kept_at: u64, now: u64) -> bool {
    let has_some = before.is_some_and(|failure| failure.output_blob.is_some());
    output.len() > OUTPUT_SHORT_BYTES && (!has_some || now.saturating_sub(kept_at) > OUTPUT_EVERY.0)
}

/// How a process ended, in words such as `exit 3` or `signal 9 (out of memory)`.
pub(super) fn exit_text(record: &ExitRecord) -> String {
    match &record.outcome {
        Outcome::Exited(code) => format!("exit {code}"),
        Outcome::Signaled(number) if record.oom_killed => format!("signal {number} (out of memory)"),
        Outcome::Signaled(number) => match Signal::try_from(*number) {
            Ok(signal) => format!("signal {number} ({signal})"),
            Err(_) => format!("signal {number}"),
        },
        Outcome::Failed(failure) => format!("not started: {}", failure.why),
    }
}

/// What is reported of a fault.
pub(super) fn failure_of(instance: &Instance, fault: Fault, seen: &LastSeen) -> TargetFailure {
    let (reason, hint) = explain(instance, fault, seen);
    TargetFailure {
        service: Some(instance.service.clone()),
        reason: cut(reason),
        hint: cut(hint),
        exit: seen.exit.as_ref().map(exit_text).map(cut),
        probe: seen.probe.clone().map(cut),
        output: short(&seen.output),
        output_blob: None,
    }
}

/// A failure that is no instance's.
pub(super) fn failure_without_instance(reason: String, hint: String) -> TargetFailure {
    let (reason, hint) = (cut(reason), cut(hint));
    TargetFailure { service: None, reason, hint, exit: None, probe: None, output: String::new(), output_blob: None }
}

fn explain(instance: &Instance, fault: Fault, seen: &LastSeen) -> (String, String) {
    let (service, release) = (&instance.service, &instance.release);
    let health = &instance.settings.settings.health;
    let answer = seen.probe.as_deref().unwrap_or("nothing");
    match (fault, &seen.refusal, &seen.exit) {
        (Fault::Died, Some(refusal), _) => (refusal.reason.clone(), refusal.hint.clone()),
        (Fault::Died, None, Some(ExitRecord { outcome: Outcome::Failed(failure), .. })) => (
            format!("service {service} of {release} could not be started: {} ({})", failure.what, failure.why),
            failure.way_out.clone(),
        ),
        (Fault::Died, None, Some(record)) if record.oom_killed => (
            format!("service {service} of {release} was killed for lack of memory"),
            "raise its `limits.memory`, or find out why it needs more than before".to_owned(),
        ),
        (Fault::Died, None, Some(record)) => (
            format!("service {service} of {release} ended by itself ({}) when it should run", exit_text(record)),
            "read the end of its output".to_owned(),
        ),
        (Fault::Died, None, None) if seen.disk_full => (
            format!("service {service} of {release} ended, and how could not be kept: this target's disk is full"),
            "free some space on this target, or give it a larger disk".to_owned(),
        ),
        (Fault::Died, None, None) => (
            format!("service {service} of {release} vanished: it or its supervisor was killed"),
            "see whether this target is out of memory, or who killed it".to_owned(),
        ),
        (Fault::NeverAnswered, ..) => (
            format!("no probe of service {service} of {release} passed within {}: {answer}", health.start_timeout),
            "read the end of its output; if it merely starts slowly, raise `health.start_timeout`".to_owned(),
        ),
        (Fault::StoppedAnswering, ..) => (
            format!("service {service} of {release} answered its probes and then no longer: {answer}"),
            "read the end of its output".to_owned(),
        ),
        (Fault::Unsteady, ..) => (
            format!("service {service} of {release} did not pass its probes for {} on end: {answer}", health.min_healthy),
            "see why some of its probes fail".to_owned(),
        ),
    }
}

fn short(output: &[u8]) -> String {
    let from = output.len().saturating_sub(OUTPUT_SHORT_BYTES);
    let mut text = String::from_utf8_lossy(&output[from..]).into_owned();
    // What is not UTF-8 grew: three bytes for one.
    text.drain(..text.ceil_char_boundary(text.len().saturating_sub(OUTPUT_SHORT_BYTES)));
    text
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use swell_model::digest::Digest;

    #[test]
    fn crash_loop_uploads_output_now_and_then() {
        let long = [b'x'; OUTPUT_SHORT_BYTES + 1];
        let none = failure_without_instance(String::new(), String::new());
        let some = TargetFailure { output_blob: Some(Digest::of(b"")), ..none.clone() };
        assert!(is_worth_uploading(&long, None, 0, 5) && is_worth_uploading(&long, Some(&none), 0, 5));
        assert!(!is_worth_uploading(&long[1..], None, 0, 5), "a report takes it");
        assert!(!is_worth_uploading(&long, Some(&some), 1_000, 601_000));
        assert!(is_worth_uploading(&long, Some(&some), 1_000, 601_001));
    }

    #[test]
    fn output_in_report_is_bounded_whatever_its_bytes() {
        assert_eq!(short(b"hello"), "hello");
        assert_eq!(short(&[b'x'; 9000]).len(), OUTPUT_SHORT_BYTES);
        assert!(short(&[0xff; 9000]).len() <= OUTPUT_SHORT_BYTES);
        assert!(short("é".repeat(4000).as_bytes()).ends_with('é'));
        assert!(cut("é".repeat(4000)).len() <= TEXT_BYTES_MAX);
    }
}
