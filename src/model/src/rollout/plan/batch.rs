//! Which targets may be changed right now. Guards the fourth invariant: never more than `max_unavailable` targets without a
//! healthy instance because of us, and with `spread = "zone"` never in two zones at once. Knows nothing of gates.

use roaring::RoaringBitmap;

/// What the next batch depends on. All are sets of target numbers of the environment.
#[derive(Debug, Clone, Copy)]
pub struct BatchInput<'s> {
    /// The targets of the wave that can be reached: the others might come back, and stop, when the budget is spent.
    pub members: &'s RoaringBitmap,
    /// Those of any wave that this rollout changed.
    pub started: &'s RoaringBitmap,
    /// Those of `started` that run the new release and are healthy now. One that fails later leaves this set.
    pub settled: &'s RoaringBitmap,
    /// Those that serve nothing healthy now, or served nothing before they were changed, by no doing of ours.
    /// A target leaves this set when it has once been healthy: after that its failures are ours.
    pub down_before: &'s RoaringBitmap,
    /// The targets of each zone: [`super::Plan::zones`]. Only looked at with `spread_zone`.
    pub zones: &'s [RoaringBitmap],
    /// How many targets may be unavailable at once because of us.
    pub max_unavailable: u32,
    /// Whether they must all be of one zone.
    pub spread_zone: bool,
}

/// The targets that count against the budget: those that this rollout changed and that are not healthy on the new
/// release, whether they still serve the old one or not: each may stop at any moment, so each is counted from the start. Targets
/// that served nothing before cost nothing.
pub fn at_risk(state: &BatchInput<'_>) -> RoaringBitmap {
    state.started - state.settled - state.down_before
}

/// The targets of the wave to change now, besides those that already were changed.
///
/// - Those that serve nothing are changed at once, outside the budget: repairing is free.
/// - Of the others, as many as `max_unavailable` leaves, the lowest numbers first.
/// - With `spread_zone`, these are of the one zone that has targets at risk; where none has, of the first zone that has
///   targets left; where two have, none at all until one of them has recovered. Targets at risk that are of no zone
///   count as a zone of their own.
///
/// So when failed targets have used up the budget, nothing more is changed, and the wave's deadline decides.
pub fn next_batch(state: &BatchInput<'_>) -> RoaringBitmap {
    let left = state.members - state.started;
    let free = &left & state.down_before;
    let at_risk = at_risk(state);
    let budget = u64::from(state.max_unavailable).saturating_sub(at_risk.len());
    let serving = left - state.down_before;
    let may_stop = if state.spread_zone { within_one_zone(&serving, &at_risk, state.zones) } else { serving };
    may_stop.into_iter().take(budget as usize).collect::<RoaringBitmap>() | free
}

fn within_one_zone(serving: &RoaringBitmap, at_risk: &RoaringBitmap, zones: &[RoaringBitmap]) -> RoaringBitmap {
    let mut disturbed = zones.iter().filter(|zone| !zone.is_disjoint(at_risk));
    let zone = match (disturbed.next(), disturbed.next()) {
        (Some(_), Some(_)) => None,
        (Some(zone), None) => at_risk.is_subset(zone).then_some(zone),
        (None, _) if at_risk.is_empty() => zones.iter().find(|zone| !zone.is_disjoint(serving)),
        (None, _) => None,
    };
    zone.map(|zone| zone & serving).unwrap_or_default()
}
