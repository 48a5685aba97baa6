//! Backward: which targets go back next. Services that start beside go back at once; services that are changed in place go back in
//! steps that keep to the rollback's availability and to one zone at a time, as forward.

use roaring::RoaringBitmap;

use super::{Next, Seen, members, serving_nothing};
use crate::{
    command::RolloutAction,
    rollout::{
        Rollout, TargetSample, WaitReason,
        availability::{is_bounded_going_back, unavailable_going_back, zones_of},
        plan::{BatchInput, next_batch},
    },
    tables::{ReadTables, TablesError},
};

pub(super) fn next<T: ReadTables>(tables: &T, rollout: &Rollout, seen: &Seen) -> Result<Next, TablesError> {
    let sets = &rollout.sets;
    let members = members(tables, rollout)?;
    let touched = rollout.touched() & &members;
    let untold = &touched - &sets.reverted;
    let missing = &(&touched & &sets.reverted) - &sets.restored;
    let late = seen.elapsed > rollout.settings.rollback_deadline;
    if untold.is_empty() {
        if missing.is_subset(&seen.lost) || late {
            let unreachable = &missing & &(&seen.lost | &(&missing - &seen.connected));
            return Ok(Next::act(RolloutAction::FinishRollback { rollout: rollout.id, unreachable }));
        }
        return Ok(Next::wait(WaitReason::Restoration { targets: TargetSample::of(tables, &(&missing - &seen.lost))? }));
    }
    let targets = step(tables, rollout, seen, &members, &untold)?;
    if !targets.is_empty() {
        return Ok(Next::act(RolloutAction::RevertTargets { rollout: rollout.id, targets }));
    }
    if late && rollout.elapsed <= rollout.settings.rollback_deadline {
        // Who is not back by now is given up, so that the others go back all the same. Applying that needs the time in state.
        let (wave, gate, targets) = (rollout.wave, rollout.gate, rollout.targets_assigned());
        let elapsed = seen.elapsed;
        return Ok(Next::act(RolloutAction::RecordElapsed { rollout: rollout.id, wave, gate, targets, elapsed }));
    }
    let on_the_way = unavailable_going_back(rollout, &members, &seen.lost);
    if on_the_way.is_empty() {
        return Ok(Next::wait(WaitReason::Connection { targets: TargetSample::of(tables, &untold)? }));
    }
    Ok(Next::wait(WaitReason::Restoration { targets: TargetSample::of(tables, &on_the_way)? }))
}

/// Those of `untold` that go back now.
fn step<T: ReadTables>(
    tables: &T,
    rollout: &Rollout,
    seen: &Seen,
    members: &RoaringBitmap,
    untold: &RoaringBitmap,
) -> Result<RoaringBitmap, TablesError> {
    if !is_bounded_going_back(rollout) {
        return Ok(untold.clone());
    }
    let sets = &rollout.sets;
    let given_up = rollout.given_up();
    // What serves nothing is repaired at once; a lost target follows when it returns.
    let free = &(untold & &seen.lost) | &serving_nothing(tables, rollout, untold)?;
    // Others might come back, and stop, when the budget is spent.
    let reachable = untold & &(&seen.connected | &free);
    let mut zones = zones_of(rollout, &rollout.touched());
    // A zone that is disturbed already comes first.
    zones.sort_by_key(|zone| zone.is_disjoint(&given_up));
    Ok(next_batch(&BatchInput {
        members: &reachable,
        started: &(&sets.reverted & members),
        settled: &sets.restored,
        down_before: &(&(&(&free | &sets.down_before_revert) | &given_up) | &seen.lost),
        zones: &zones,
        max_unavailable: rollout.settings.rollback_max_unavailable,
        spread_zone: rollout.plan.spread_zone,
    }))
}
