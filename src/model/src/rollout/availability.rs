//! How many targets a rollout may make unavailable at once: invariant 4.
//!
//! A target is unavailable *because of us* when it served before it was told to change and has no healthy instance now. Where a
//! new instance must wait for the old one to stop, every told target counts until it is healthy again. Repairing is free:
//! targets that served nothing before they were told do not count until they have once been healthy. Nor does one that left the
//! environment: nobody counts on it.

use roaring::RoaringBitmap;

use crate::rollout::Rollout;

/// The environment's `members` on which no healthy instance answers because of this rollout.
pub fn unavailable_because_of_us(rollout: &Rollout, members: &RoaringBitmap) -> RoaringBitmap {
    let sets = &rollout.sets;
    let answering = if rollout.settings.in_place { &sets.healthy | &sets.restored } else { &sets.changed - &sets.unserving };
    (&(&sets.changed & members) - &sets.down_before) - &answering
}

/// Which bound the rollout breaks, once `told` are among its changed targets; none: it keeps them all.
pub fn violation(rollout: &Rollout, members: &RoaringBitmap, told: &RoaringBitmap) -> Option<String> {
    let unavailable = unavailable_because_of_us(rollout, members);
    if unavailable.is_disjoint(told) {
        // What was told does not make it worse: repairing goes on even where more is broken than may be.
        return None;
    }
    let most = u64::from(rollout.plan.max_unavailable);
    if unavailable.len() > most {
        return Some(format!("{} targets would be unavailable, and at most {most} may be", unavailable.len()));
    }
    let zones = rollout.plan.zones.iter().filter(|zone| !zone.is_disjoint(&unavailable)).count();
    (rollout.plan.spread_zone && zones > 1).then(|| format!("targets of {zones} zones would be unavailable at once"))
}
