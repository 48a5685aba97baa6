//! Sentences for people, made of the typed reasons of the rules. Pure: reads no state. Waves are numbered from 1 for people.

use swell_model::{
    actor_failure::ActorFailure,
    event::{DataKey, Event},
    rollout::{
        BlockReason, EndReason, Evidence, FailureCause, PauseReason, RollbackReason, Rollout, StartReason, TargetSample,
        WaitReason,
    },
};

/// What to do where only a person can go on.
const PROMOTE_OR_ABORT: &str = "promote or abort";

/// `web-1, web-2 and 7 more`.
pub fn targets(sample: &TargetSample) -> String {
    let names: Vec<String> = sample.names.iter().map(ToString::to_string).collect();
    match (names.join(", "), sample.count - (names.len() as u64).min(sample.count)) {
        (names, 0) => names,
        (names, more) if names.is_empty() => format!("{more} targets"),
        (names, more) => format!("{names} and {more} more"),
    }
}

/// What a rollout waits for, in a phrase.
pub fn wait(reason: &WaitReason) -> String {
    match reason {
        WaitReason::Blocked(blocked) => block(blocked),
        WaitReason::NextStep => "its next step".to_owned(),
        WaitReason::Paused { by, reason } => format!("{} to resume it: {}", by.name, pause(reason)),
        WaitReason::Convergence { targets: sample, remaining } => {
            format!("{} to become healthy (at most {remaining} more)", targets(sample))
        }
        WaitReason::Bake { elapsed, duration } => format!("the bake: {elapsed} of {duration}"),
        WaitReason::Availability { targets: sample } => {
            format!("other targets to be available again before {} can change", targets(sample))
        }
        WaitReason::Connection { targets: sample } => format!("{} to connect", targets(sample)),
        WaitReason::Reconnection { targets: sample } => format!("{} to connect again or to be lost", targets(sample)),
        WaitReason::HealthyTargetsLost { targets: sample } => {
            format!("{} to connect again: healthy at first and now lost; {PROMOTE_OR_ABORT}", targets(sample))
        }
        WaitReason::NoTargetsLeft { wave } => format!("a person: wave {} has no targets left; {PROMOTE_OR_ABORT}", wave + 1),
        WaitReason::NoTargetsConnected { wave } => {
            format!("a target to connect: wave {} has no connected targets; {PROMOTE_OR_ABORT}", wave + 1)
        }
        WaitReason::NoTargetsHealthy { wave, targets: sample } => {
            format!("{} to become healthy: wave {} has no healthy targets; {PROMOTE_OR_ABORT}", targets(sample), wave + 1)
        }
        WaitReason::Restoration { targets: sample } => format!("{} to go back", targets(sample)),
    }
}

/// What a rollout waits for that has failed: no rule goes on by itself.
pub fn failed(rollout: &Rollout) -> String {
    let reason = rollout.end_reason.as_ref().map(end).unwrap_or_else(|| "not everything could go back".to_owned());
    format!("a person: {reason}")
}

/// What a subject waits for whose actor keeps failing.
pub fn actor_failure(failure: &ActorFailure) -> String {
    format!("its actor on the leading server, which keeps failing and is restarted: {}", failure.why)
}

/// Why a rollout has not begun.
pub fn block(reason: &BlockReason) -> String {
    match reason {
        BlockReason::Rollout(id) => format!("rollout {id} is at work in this environment"),
        BlockReason::Frozen(freeze) => format!("the environment is frozen by {}: {}", freeze.by.name, freeze.why),
    }
}

/// Why a rollout is paused.
pub fn pause(reason: &PauseReason) -> String {
    match reason {
        PauseReason::Requested(text) => text.clone(),
        PauseReason::Irreversible(reason) => {
            format!("{}; the release is irreversible: {PROMOTE_OR_ABORT}", evidence(reason))
        }
    }
}

/// Why a rollout was asked for, went back or ended: the last of these that is known. None where nobody gave a reason.
pub fn why(rollout: &Rollout) -> Option<String> {
    let ended = rollout.end_reason.as_ref().filter(|_| rollout.rollback_reason.is_none()).map(end);
    let started = match &rollout.start_reason {
        StartReason::Requested(text) => text.clone(),
        StartReason::Branch(branch) => Some(format!("{branch} deploys by itself")),
    };
    rollout.rollback_reason.as_ref().map(rollback).or(ended).or(started)
}

/// Why targets went back from a release.
pub fn rollback(reason: &RollbackReason) -> String {
    match reason {
        RollbackReason::Verdict { evidence: reason, .. } => evidence(reason),
        RollbackReason::Aborted { text, .. } => text.clone(),
        RollbackReason::Requested { by, text } => text.clone().unwrap_or_else(|| format!("rolled back by {}", by.name)),
    }
}

/// Why a rollout ended.
pub fn end(reason: &EndReason) -> String {
    match reason {
        EndReason::Aborted { text, .. } => text.clone(),
        EndReason::Superseded { by } => format!("{by} took its place in the queue"),
        EndReason::Refused(rejection) => rejection.to_string(),
        EndReason::Preempted { by, text: Some(text) } => format!("{by} rolls back: {text}"),
        EndReason::Preempted { by, text: None } => format!("{by} rolls back"),
        EndReason::NothingChanged => "no target was changed".to_owned(),
        EndReason::Restored { unreachable: 0 } => "every changed target is back".to_owned(),
        EndReason::Restored { unreachable } => {
            format!("every changed target is back but {unreachable} unreachable ones, which converge when they return")
        }
        EndReason::NotRestored { targets } => format!("{targets} targets could not go back"),
        EndReason::Verdict { evidence: reason, .. } => evidence(reason),
    }
}

/// On what evidence a gate was judged.
pub fn evidence(evidence: &Evidence) -> String {
    match evidence {
        Evidence::Converged { healthy, failed, down_before, left_out } => {
            let mut text = format!("{healthy} of {} targets are healthy", healthy + failed + down_before);
            if *down_before > 0 {
                text += &format!("; {down_before} were down before");
            }
            if *left_out > 0 {
                text += &format!("; {left_out} are not connected or cordoned and converge later");
            }
            text
        }
        Evidence::Baked { healthy, changed, duration } => {
            format!("{healthy} of {changed} targets stayed healthy for {duration}")
        }
        Evidence::TooManyFailures { failed, max_failures, cause } => {
            format!("{} failed, and at most {max_failures} may{}", targets(failed), because(cause.as_ref()))
        }
        Evidence::NoneHealthy { failed, cause } => {
            format!("{} failed, and no target of this wave is healthy{}", targets(failed), because(cause.as_ref()))
        }
        Evidence::UnavailabilityExhausted { unchanged, unavailable } => {
            format!("{} cannot be changed: {} use up what may be unavailable at once", targets(unchanged), targets(unavailable))
        }
        Evidence::Promoted(text) => text.clone(),
    }
}

fn because(cause: Option<&FailureCause>) -> String {
    match cause {
        Some(FailureCause::Reported(text)) => format!(": {text}"),
        Some(FailureCause::Deadline(deadline)) => format!(": not healthy within {deadline}"),
        None => String::new(),
    }
}

/// Why something happened: the coded reason of an event with its numbers, and what a person or an agent wrote.
pub fn event_note(event: &Event) -> Option<String> {
    let Some(code) = event.data.get(&DataKey::Reason) else { return event.note.clone() };
    let numbers =
        [DataKey::Healthy, DataKey::Failed, DataKey::MaxFailures, DataKey::Changed, DataKey::Unreachable, DataKey::Targets];
    let known = numbers.iter().filter_map(|key| Some(format!("{} {}", key.as_str().replace('_', " "), event.data.get(key)?)));
    let known: Vec<String> = known.collect();
    let mut text = code.replace('-', " ");
    if !known.is_empty() {
        text += &format!(" ({})", known.join(", "));
    }
    if let Some(note) = &event.note {
        text += &format!(": {note}");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use swell_model::{rollout::TargetSample, units::Millis};

    #[test]
    fn waits_and_evidence_are_plain_sentences() {
        let sample = TargetSample { names: ["web-1", "web-2"].map(|name| name.parse().expect("a name")).to_vec(), count: 9 };
        assert_eq!(targets(&sample), "web-1, web-2 and 7 more");
        assert_eq!(wait(&WaitReason::NoTargetsLeft { wave: 1 }), "a person: wave 2 has no targets left; promote or abort");
        let cause = Some(FailureCause::Deadline(Millis::from_secs(90)));
        assert_eq!(
            evidence(&Evidence::TooManyFailures { failed: sample, max_failures: 2, cause }),
            "web-1, web-2 and 7 more failed, and at most 2 may: not healthy within 1m30s"
        );
        let evidence_ = Evidence::Converged { healthy: 4, failed: 1, down_before: 1, left_out: 2 };
        assert_eq!(
            evidence(&evidence_),
            "4 of 6 targets are healthy; 1 were down before; 2 are not connected or cordoned and converge later"
        );
    }
}
