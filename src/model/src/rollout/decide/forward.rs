//! Forward: which targets change next, and what the gates conclude.

use roaring::RoaringBitmap;

use super::{Next, Seen, members, serving_nothing};
use crate::{
    command::RolloutAction,
    fleet::Target,
    rollout::{
        Evidence, FailureCause, Gate, Purpose, Rollout, TargetSample, Verdict, WaitReason, WaveTally,
        plan::{BatchInput, next_batch},
        reason::bounded,
    },
    tables::{ReadTables, TablesError, key},
    units::Millis,
};

/// The present wave, as it stands for this decision.
struct Wave {
    tally: WaveTally,
    /// Changed, and neither healthy nor failed nor overdue.
    pending: RoaringBitmap,
    /// Whether the batch's deadline is over.
    is_late: bool,
}

pub(super) fn next<T: ReadTables>(tables: &T, rollout: &Rollout, seen: &Seen) -> Result<Next, TablesError> {
    let wave = wave(rollout, &members(tables, rollout)?, seen);
    // A rollback tries every target before it gives up: there is nothing better to go back to.
    let settled = &(&wave.tally.healthy | &wave.tally.failed) | &seen.lost;
    let is_settled = rollout.purpose == Purpose::Deploy || wave.is_late || wave.tally.targets.is_subset(&settled);
    if is_settled && wave.tally.has_too_many_failures() {
        let failed = TargetSample::of(tables, &wave.tally.counted)?;
        let (max_failures, cause) = (wave.tally.max_failures, cause(rollout, &wave));
        return Ok(verdict(rollout, Verdict::Fail, Evidence::TooManyFailures { failed, max_failures, cause }));
    }
    match rollout.gate {
        Gate::Convergence => converge(tables, rollout, seen, &wave),
        Gate::Bake if seen.elapsed < rollout.settings.bake => {
            Ok(Next::wait(WaitReason::Bake { elapsed: whole_secs(seen.elapsed), duration: rollout.settings.bake }))
        }
        Gate::Bake => {
            if let Some(next) = missing_data(tables, rollout, seen, &wave)? {
                return Ok(next);
            }
            let changed = &rollout.sets.changed & &wave.tally.members;
            let healthy = &(&rollout.sets.healthy & &changed) & &seen.connected;
            let evidence = Evidence::Baked { healthy: healthy.len(), changed: changed.len(), duration: rollout.settings.bake };
            Ok(verdict(rollout, Verdict::Pass, evidence))
        }
    }
}

fn wave(rollout: &Rollout, members: &RoaringBitmap, seen: &Seen) -> Wave {
    let tally = WaveTally::new(rollout, members);
    let is_late = seen.elapsed > rollout.settings.batch_deadline && rollout.gate == Gate::Convergence;
    let mut pending = &(&tally.changed - &rollout.sets.healthy) - &rollout.sets.failed;
    if rollout.purpose == Purpose::Rollback {
        // It goes back without the lost ones: they converge when they return.
        pending -= &seen.lost;
    }
    // Gates wait for a target that just went away; only when it is lost, its time counts.
    let overdue = if is_late { &pending & &(&seen.connected | &seen.lost) } else { RoaringBitmap::new() };
    let tally = tally.with_overdue(rollout, overdue);
    Wave { pending: pending - &tally.failed, tally, is_late }
}

fn converge<T: ReadTables>(tables: &T, rollout: &Rollout, seen: &Seen, wave: &Wave) -> Result<Next, TablesError> {
    let sets = &rollout.sets;
    let unchanged = wave.tally.unchanged();
    let mut changeable = &unchanged & &seen.connected;
    let mut left_out = &unchanged & &seen.lost;
    for index in changeable.clone() {
        if tables.get::<Target>(&key(index))?.is_some_and(|target| target.cordoned.is_some()) {
            changeable.remove(index);
            left_out.insert(index);
        }
    }
    let left_out = left_out - &sets.unreachable;
    let batch = batch(tables, rollout, &wave.tally.members, &changeable)?;
    if !batch.is_empty() || !left_out.is_empty() {
        return Ok(Next::act(RolloutAction::ChangeTargets { rollout: rollout.id, targets: batch, unreachable: left_out }));
    }
    if !wave.pending.is_empty() {
        let targets = TargetSample::of(tables, &wave.pending)?;
        if wave.is_late {
            return Ok(Next::wait(WaitReason::Reconnection { targets }));
        }
        let remaining = whole_secs(Millis(rollout.settings.batch_deadline.0.saturating_sub(seen.elapsed.0)));
        return Ok(Next::wait(WaitReason::Convergence { targets, remaining }));
    }
    if !changeable.is_empty() {
        let targets = TargetSample::of(tables, &changeable)?;
        if wave.is_late {
            // Nothing is under way and the budget is spent: waiting longer changes nothing.
            let down = &(&(&sets.changed & &wave.tally.members) - &sets.healthy) - &sets.down_before;
            let unavailable = TargetSample::of(tables, &down)?;
            let evidence = Evidence::UnavailabilityExhausted { unchanged: targets, unavailable };
            return Ok(verdict(rollout, Verdict::Fail, evidence));
        }
        return Ok(Next::wait(WaitReason::Availability { targets }));
    }
    let undecided = &(&unchanged - &sets.unreachable) - &seen.lost;
    if !undecided.is_empty() {
        return Ok(Next::wait(WaitReason::Connection { targets: TargetSample::of(tables, &undecided)? }));
    }
    if let Some(next) = missing_data(tables, rollout, seen, wave)? {
        return Ok(next);
    }
    let unhealthy = &wave.tally.changed - &wave.tally.healthy;
    let down_before = (&unhealthy & &sets.down_before).len();
    let evidence = Evidence::Converged {
        healthy: wave.tally.healthy.len(),
        failed: unhealthy.len() - down_before,
        down_before,
        left_out: unchanged.len(),
    };
    Ok(verdict(rollout, Verdict::Pass, evidence))
}

/// What becomes of a wave that would pass but for what it does not tell: missing data is never a pass. Either too many of its targets are
/// silent, or none is healthy, however many may fail. A rollback goes on: its release was judged before.
fn missing_data<T: ReadTables>(tables: &T, rollout: &Rollout, seen: &Seen, wave: &Wave) -> Result<Option<Next>, TablesError> {
    if rollout.purpose == Purpose::Rollback {
        return Ok(None);
    }
    let (number, tally) = (rollout.wave, &wave.tally);
    let away = &(&tally.healthy - &seen.connected) - &seen.lost;
    if !away.is_empty() {
        let targets = TargetSample::of(tables, &away)?;
        return Ok(Some(Next::wait(WaitReason::Reconnection { targets })));
    }
    if !tally.healthy.is_disjoint(&seen.connected) {
        let silent = &tally.healthy & &seen.lost;
        if silent.is_empty() || (&tally.counted | &silent).len() <= tally.max_failures {
            return Ok(None);
        }
        return Ok(Some(Next::wait(WaitReason::HealthyTargetsLost { targets: TargetSample::of(tables, &silent)? })));
    }
    if !tally.judged.is_empty() && tally.judged.is_subset(&tally.failed) {
        let failed = TargetSample::of(tables, &tally.counted)?;
        let evidence = Evidence::NoneHealthy { failed, cause: cause(rollout, wave) };
        return Ok(Some(verdict(rollout, Verdict::Fail, evidence)));
    }
    let reason = match (tally.targets.is_empty(), tally.changed.is_empty()) {
        // The waves before it were judged, and there is nothing left of this one.
        (true, _) if rollout.wave > 0 => return Ok(None),
        // Nobody of this wave can be changed, and the targets of the waves before tell how the release does: a host that is off for a
        // week does not hold up the others.
        (false, true) if rollout.wave > 0 && !rollout.sets.healthy.is_disjoint(&seen.connected) => return Ok(None),
        (true, _) => WaitReason::NoTargetsLeft { wave: number },
        (false, true) => WaitReason::NoTargetsConnected { wave: number },
        (false, false) if !tally.healthy.is_empty() => {
            WaitReason::HealthyTargetsLost { targets: TargetSample::of(tables, &tally.healthy)? }
        }
        (false, false) => WaitReason::NoTargetsHealthy { wave: number, targets: TargetSample::of(tables, &tally.changed)? },
    };
    Ok(Some(Next::wait(reason)))
}

/// Those of `changeable` that may change now, within what may be unavailable at once. A target that left takes nothing of it.
fn batch<T: ReadTables>(
    tables: &T,
    rollout: &Rollout,
    members: &RoaringBitmap,
    changeable: &RoaringBitmap,
) -> Result<RoaringBitmap, TablesError> {
    if !rollout.settings.batched {
        // The old instance answers until the new one does: changing a whole wave takes nothing away.
        return Ok(changeable.clone());
    }
    let down = &rollout.sets.down_before | &serving_nothing(tables, rollout, changeable)?;
    Ok(next_batch(&BatchInput {
        members: changeable,
        started: &(&rollout.sets.changed & members),
        settled: &rollout.sets.healthy,
        down_before: &down,
        zones: &rollout.plan.zones,
        max_unavailable: rollout.plan.max_unavailable,
        spread_zone: rollout.plan.spread_zone,
    }))
}

fn verdict(rollout: &Rollout, verdict: Verdict, evidence: Evidence) -> Next {
    let (wave, gate) = (rollout.wave, rollout.gate);
    Next::act(RolloutAction::RecordVerdict { rollout: rollout.id, wave, gate, verdict, evidence })
}

/// Why the first target that counts against the wave failed.
fn cause(rollout: &Rollout, wave: &Wave) -> Option<FailureCause> {
    let reported = rollout.failures.iter().find(|kept| !kept.reverting && wave.tally.counted.contains(kept.target));
    match reported {
        Some(failed) => Some(FailureCause::Reported(bounded(&failed.failure.reason))),
        None if !wave.tally.overdue.is_empty() => Some(FailureCause::Deadline(rollout.settings.batch_deadline)),
        None => None,
    }
}

fn whole_secs(millis: Millis) -> Millis {
    Millis(millis.0 / 1000 * 1000)
}
