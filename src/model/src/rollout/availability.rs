//! How many targets a rollout may make unavailable at once: invariant 4, as `apply` checks it. Deliberately a second computation beside
//! `decide`, which chooses its steps by [`super::plan::next_batch`]: a mistake of one is caught by the other.
//!
//! A target is unavailable *because of us* when it served before it was assigned another release and has no healthy instance now. Where a
//! new instance must wait for the old one to stop, every such target counts until it is healthy again. Repairing is free: targets that
//! served nothing before do not count until they have once been healthy. Nor does one that left the environment.

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::rollout::Rollout;

/// Which bound a step would break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AvailabilityViolation {
    /// More targets than may be.
    #[error("{unavailable} targets would be unavailable, and at most {max} may be")]
    Targets { unavailable: u64, max: u64 },
    /// Targets of several zones, although zones are kept apart.
    #[error("targets of {0} zones would be unavailable at once")]
    Zones(u64),
}

/// The environment's `members` on which no healthy instance answers because this rollout goes forward.
pub fn unavailable_because_of_us(rollout: &Rollout, members: &RoaringBitmap) -> RoaringBitmap {
    let sets = &rollout.sets;
    let answering = if rollout.settings.in_place { &sets.healthy | &sets.restored } else { &sets.changed - &sets.unserving };
    (&(&sets.changed & members) - &sets.down_before) - &answering
}

/// The environment's `members` on which no healthy instance answers because this rollout goes back. Lost targets count when they return;
/// those that were not back within the deadline were given up.
pub fn unavailable_going_back(rollout: &Rollout, members: &RoaringBitmap, lost: &RoaringBitmap) -> RoaringBitmap {
    let sets = &rollout.sets;
    let excused = &(&sets.down_before_revert | lost) | &rollout.given_up();
    (&(&sets.reverted & members) - &sets.restored) - &excused
}

/// Whether going back is done in steps: where an instance stops before its successor starts, and there is something to go back to.
pub fn is_bounded_going_back(rollout: &Rollout) -> bool {
    rollout.settings.in_place && rollout.stable.is_some()
}

/// The zones of `targets`. Those that the plan did not know are a zone of their own.
pub fn zones_of(rollout: &Rollout, targets: &RoaringBitmap) -> Vec<RoaringBitmap> {
    let known = rollout.plan.zones.iter().fold(RoaringBitmap::new(), |all, zone| all | zone);
    let unknown = targets - &known;
    let zones = rollout.plan.zones.iter().map(|zone| zone & targets);
    zones.chain([unknown]).filter(|zone| !zone.is_empty()).collect()
}

/// The bound that going forward breaks once `targets` are among its changed ones; none: it keeps them all.
pub fn violation(rollout: &Rollout, members: &RoaringBitmap, targets: &RoaringBitmap) -> Option<AvailabilityViolation> {
    let unavailable = unavailable_because_of_us(rollout, members);
    broken(rollout, &unavailable, targets, rollout.plan.max_unavailable)
}

/// The bound that going back breaks once `targets` are among the reverted ones; none: it keeps them all.
pub fn violation_going_back(
    rollout: &Rollout,
    members: &RoaringBitmap,
    lost: &RoaringBitmap,
    targets: &RoaringBitmap,
) -> Option<AvailabilityViolation> {
    if !is_bounded_going_back(rollout) {
        return None;
    }
    let unavailable = unavailable_going_back(rollout, members, lost);
    broken(rollout, &unavailable, targets, rollout.settings.rollback_max_unavailable)
}

fn broken(
    rollout: &Rollout,
    unavailable: &RoaringBitmap,
    targets: &RoaringBitmap,
    max_unavailable: u32,
) -> Option<AvailabilityViolation> {
    if unavailable.is_disjoint(targets) {
        // This step does not make it worse: repairing goes on even where more is broken than may be.
        return None;
    }
    let max = u64::from(max_unavailable);
    if unavailable.len() > max {
        return Some(AvailabilityViolation::Targets { unavailable: unavailable.len(), max });
    }
    let zones = zones_of(rollout, unavailable).len() as u64;
    (rollout.plan.spread_zone && zones > 1).then_some(AvailabilityViolation::Zones(zones))
}
