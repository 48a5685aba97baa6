//! Progress without a terminal: a line for each change since the last poll. Pure.

use super::resource::{FollowedResource, short_ref};
use crate::{
    human,
    views::{Attempt, Build, Counts, Rollout},
};

/// The changes from `old` (none at first) to `new`, a line each.
pub fn changes(old: Option<&FollowedResource>, new: &FollowedResource) -> Vec<String> {
    match (old, new) {
        (Some(FollowedResource::Build(old)), FollowedResource::Build(new)) => build(Some(old), new),
        (Some(FollowedResource::Rollout(old)), FollowedResource::Rollout(new)) => rollout(Some(old), new),
        (_, FollowedResource::Build(new)) => build(None, new),
        (_, FollowedResource::Rollout(new)) => rollout(None, new),
    }
}

/// What it waits for, repeated while nothing changes, so that a quiet log does not look like a hung one.
pub fn heartbeat(resource: &FollowedResource, now_ms: u64) -> String {
    let passed = human::duration(now_ms.saturating_sub(resource.created_at()));
    match resource.waiting() {
        Some(waiting) => format!("{} {} for {passed}; {waiting}", resource.id(), resource.state()),
        None => format!("{} {} for {passed}", resource.id(), resource.state()),
    }
}

fn state(id: &str, old: Option<&str>, new: &str) -> Option<String> {
    match old {
        None => Some(format!("{id} {new}")),
        Some(old) if old != new => Some(format!("{id} {old} -> {new}")),
        Some(_) => None,
    }
}

fn build(old: Option<&Build>, new: &Build) -> Vec<String> {
    let mut lines = Vec::new();
    if old.is_none() {
        lines.push(format!("{}: building {} {} ({})", new.id, new.pipeline, human::short(&new.commit), short_ref(&new.git_ref)));
    }
    for attempt in &new.attempts {
        let before = old.and_then(|old| old.attempts.iter().find(|before| before.number == attempt.number));
        lines.extend(attempt_changes(&new.id, before, attempt));
    }
    lines.extend(state(&new.id, old.map(|old| old.state.name()), new.state.name()));
    lines
}

fn attempt_changes(id: &str, old: Option<&Attempt>, new: &Attempt) -> Vec<String> {
    let mut lines = Vec::new();
    if old.is_none() {
        lines.push(format!("{id} attempt {} on runner {}", new.number, new.runner));
    }
    if let Some(why) = new.unisolated.as_ref().filter(|_| old.is_none_or(|old| old.unisolated.is_none())) {
        lines.push(format!("{id} is NOT ISOLATED: {why}"));
    }
    for phase in &new.phases {
        let before = old.and_then(|old| old.phases.iter().find(|before| before.phase == phase.phase));
        let ended_before = before.is_some_and(|before| before.ended_at.is_some());
        match phase.ended_at {
            Some(_) if ended_before => {}
            Some(_) if phase.skipped => lines.push(format!("{id} {}: skipped", phase.phase)),
            Some(ended_at) => {
                let took = human::duration(ended_at.saturating_sub(phase.started_at));
                let exit = phase.exit_code.filter(|code| *code != 0).map(|code| format!(", exit {code}")).unwrap_or_default();
                lines.push(format!("{id} {}: {took}{exit}", phase.phase));
            }
            None if before.is_none() => lines.push(format!("{id} {} …", phase.phase)),
            None => {}
        }
    }
    let ended_now = new.end.is_some() && old.is_none_or(|old| old.end.is_none());
    if let (true, Some(failure)) = (ended_now, &new.failure) {
        lines.push(format!("{id} attempt {}: {}", new.number, failure.reason));
    }
    lines
}

fn rollout(old: Option<&Rollout>, new: &Rollout) -> Vec<String> {
    let mut lines = Vec::new();
    let id = &new.id;
    if old.is_none() {
        let waves = human::count(new.waves.len() as u64, "wave");
        let least =
            new.timing.as_ref().map(|timing| format!(", at least {}", human::duration(timing.least_ms))).unwrap_or_default();
        let from = new.stable.as_ref().map(|stable| format!(" from {stable}")).unwrap_or_default();
        let targets = human::count(new.total, "target");
        lines.push(format!("{id}: {} to {}{from}, {targets} in {waves}{least}", new.release, new.environment));
    }
    lines.extend(state(id, old.map(|old| old.state.name()), new.state.name()));
    if old.map(|old| old.paused.is_some()) != Some(new.paused.is_some()) {
        match &new.paused {
            Some(pause) => lines.push(format!("{id} paused by {}: {}", pause.by, pause.why)),
            None if old.is_some() => lines.push(format!("{id} resumed")),
            None => {}
        }
    }
    for wave in &new.waves {
        let before = old.and_then(|old| old.waves.iter().find(|before| before.number == wave.number));
        let untouched = wave.counts.waiting == wave.targets.count && before.is_none();
        if !untouched && before.map(|before| &before.counts) != Some(&wave.counts) {
            let of = format!("wave {}/{}", wave.number, new.waves.len());
            lines.push(format!("{id} {of}: {}", counts(&wave.counts, wave.targets.count)));
        }
    }
    for record in new.verdicts.iter().skip(old.map_or(0, |old| old.verdicts.len())) {
        lines.push(format!("{id} wave {} {}: {}: {}", record.wave, record.gate, record.verdict, record.evidence));
    }
    for failed in new.failures.iter().skip(old.map_or(0, |old| old.failures.len())) {
        lines.push(format!("{id} {} failed: {}", failed.target, failed.reason));
    }
    lines
}

/// The targets of a wave by state: `3/5 healthy, 2 changing`.
pub fn counts(counts: &Counts, of: u64) -> String {
    let mut parts = vec![format!("{}/{of} healthy", counts.healthy)];
    let rest = [
        (counts.changing, "changing"),
        (counts.failed, "failed"),
        (counts.reverting, "reverting"),
        (counts.restored, "restored"),
        (counts.unreachable, "unreachable"),
    ];
    parts.extend(rest.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
    parts.join(", ")
}
