//! Who counts for and against the present wave: the arithmetic that deciding and applying a verdict share. Knows nothing of who is
//! connected; the caller says whose time is over.

use roaring::RoaringBitmap;

use crate::rollout::Rollout;

/// The present wave among the environment's members. A target that left the environment counts against no one.
#[derive(Debug, Clone, PartialEq)]
pub struct WaveTally {
    /// The environment's targets.
    pub members: RoaringBitmap,
    /// The wave's targets, with those of earlier waves that could not be changed in their time.
    pub targets: RoaringBitmap,
    /// Of `targets`: were assigned the release.
    pub changed: RoaringBitmap,
    /// Of `targets`: run the release and are healthy.
    pub healthy: RoaringBitmap,
    /// Of `changed`: tell how the release does, since they served before.
    pub judged: RoaringBitmap,
    /// Of every wave: failed, or overdue.
    pub failed: RoaringBitmap,
    /// Of `failed`: were not healthy in time.
    pub overdue: RoaringBitmap,
    /// Of `failed`: count against `max_failures`.
    pub counted: RoaringBitmap,
    /// How many may have failed for the wave to pass.
    pub max_failures: u64,
}

impl WaveTally {
    /// Counts the present wave of `rollout`.
    pub fn new(rollout: &Rollout, members: &RoaringBitmap) -> Self {
        let sets = &rollout.sets;
        let targets = rollout.wave_targets(members);
        let changed = &targets & &sets.changed;
        let failed = &(&sets.failed & &sets.changed) & members;
        Self {
            members: members.clone(),
            healthy: &targets & &sets.healthy,
            judged: rollout.without_down_before(changed.clone()),
            counted: rollout.without_down_before(failed.clone()),
            overdue: RoaringBitmap::new(),
            max_failures: rollout.max_failures(),
            targets,
            changed,
            failed,
        }
    }

    /// Counts `overdue` as failed too.
    pub fn with_overdue(mut self, rollout: &Rollout, overdue: RoaringBitmap) -> Self {
        self.failed |= &overdue;
        self.counted = rollout.without_down_before(self.failed.clone());
        self.overdue = overdue;
        self
    }

    /// The wave's targets that have not been assigned the release.
    pub fn unchanged(&self) -> RoaringBitmap {
        &self.targets - &self.changed
    }

    /// Whether more targets failed than may.
    pub fn has_too_many_failures(&self) -> bool {
        self.counted.len() > self.max_failures
    }
}
