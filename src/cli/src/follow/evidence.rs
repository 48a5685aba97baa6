//! The evidence of a failure: reason, last output, hint. Pure.

use super::resource::FollowedResource;
use crate::{
    human,
    views::{Build, FailedTarget, Rollout},
};
use swell_model::rollout::{RolloutState, Verdict};

/// How many failed targets are shown.
const TARGETS_SHOWN_MAX: usize = 3;
/// How many lines of output are shown for each.
const LINES_SHOWN_MAX: usize = 30;

/// The evidence of a failure; none if nothing failed.
pub fn evidence(resource: &FollowedResource) -> Option<String> {
    let text = match resource {
        FollowedResource::Build(build) => of_build(build),
        FollowedResource::Rollout(rollout) => of_rollout(rollout),
    };
    (!text.is_empty()).then_some(text)
}

fn of_build(build: &Build) -> String {
    let Some(failure) = build.attempts.last().and_then(|attempt| attempt.failure.as_ref()) else { return String::new() };
    let phase = failure.phase.as_ref().map(|phase| format!(" in {phase}")).unwrap_or_default();
    let mut text = format!("{} failed{phase}: {}\n", build.id, failure.reason);
    text += &output(&failure.output);
    text += &hint(&failure.hint);
    text + &format!("  full log: swell logs {}\n", build.id)
}

fn of_rollout(rollout: &Rollout) -> String {
    let mut text = String::new();
    for record in rollout.verdicts.iter().filter(|record| record.verdict.get() == Some(Verdict::Fail)) {
        text += &format!("{} wave {} failed its {} gate: {}\n", rollout.id, record.wave, record.gate, record.evidence);
    }
    use RolloutState::{Canceled, Failed, Preempted, RolledBack};
    let stopped = matches!(rollout.state.get(), Some(RolledBack | Failed | Canceled | Preempted));
    if let Some(why) = rollout.why.as_ref().filter(|_| stopped && text.is_empty()) {
        text += &format!("{} {}: {why}\n", rollout.id, rollout.state);
    }
    text += &failed_targets(&rollout.failures);
    if !text.is_empty() {
        text += &format!("  details: swell why {}\n", rollout.id);
    }
    text
}

/// The first failed targets: reason, exit status, last probe and last output.
pub fn failed_targets(failures: &[FailedTarget]) -> String {
    let mut text = String::new();
    for failed in failures.iter().take(TARGETS_SHOWN_MAX) {
        let service = failed.service.as_ref().map(|service| format!(" ({service})")).unwrap_or_default();
        let when = if failed.reverting { " while being reverted" } else { "" };
        text += &format!("{}{service} failed{when}: {}\n", failed.target, failed.reason);
        text += &failed.exit.as_ref().map(|exit| format!("  exit: {exit}\n")).unwrap_or_default();
        text +=
            &failed.probe.as_ref().map(|probe| format!("  last probe: {}\n", human::one_line(probe, 200))).unwrap_or_default();
        text += &output(&failed.output);
        text += &hint(&failed.hint);
    }
    if let more @ 1.. = failures.len().saturating_sub(TARGETS_SHOWN_MAX) {
        text += &format!("and {} more\n", human::count(more as u64, "target"));
    }
    text
}

fn hint(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!("  hint: {hint}\n") }
}

/// The last lines of a program's output, each after a bar.
fn output(text: &str) -> String {
    let text = human::printable(text);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let skipped = lines.len().saturating_sub(LINES_SHOWN_MAX);
    let mut shown = if skipped > 0 { format!("  | ({} omitted)\n", human::count(skipped as u64, "line")) } else { String::new() };
    for line in &lines[skipped..] {
        shown += &format!("  | {line}\n");
    }
    shown
}
