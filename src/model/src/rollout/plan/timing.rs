//! How long a rollout takes at least, and how long it may take. Knows nothing of what time it is.

use roaring::RoaringBitmap;

use crate::rollout::plan::Plan;
use crate::{
    pipeline_file::{Deploy, PipelineFile, Start, Strategy},
    rollout::Settings,
    units::{Amount, Millis},
};

/// How long a target may take to fetch and unpack a release, where no deadline is set.
const FETCH: Millis = Millis::from_secs(60);

/// What the time of a rollout depends on: the slowest of the services, and the deploy section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long each wave but the last is watched.
    pub bake: Millis,
    /// How long a service must be healthy to count as such.
    pub min_healthy: Millis,
    /// How long an old instance drains.
    pub drain: Millis,
    /// Whether an old instance stops before its successor starts, so that each change costs availability.
    pub in_place: bool,
    /// Whether a wave is changed in batches of what may be unavailable, and not all at once.
    pub batched: bool,
    /// How long a batch may take to be healthy.
    pub batch_deadline: Millis,
    /// How many targets may be unavailable at once while going back.
    pub rollback_max_unavailable: Amount,
}

impl Timing {
    /// The timing of a pipeline in an environment.
    pub fn of(file: &PipelineFile, deploy: &Deploy) -> Self {
        let most = |length: fn(&crate::pipeline_file::Service) -> u64| file.service.values().map(length).max().unwrap_or(0);
        let slowest_ms = most(|service| {
            service.stop.drain.0 + service.stop.timeout.0 + service.health.start_timeout.0 + service.health.min_healthy.0
        });
        let in_place = file.service.values().any(|service| service.start == Start::InPlace);
        Self {
            bake: deploy.bake,
            min_healthy: Millis(most(|service| service.health.min_healthy.0)),
            drain: Millis(most(|service| service.stop.drain.0)),
            in_place,
            batched: in_place || deploy.strategy == Strategy::Rolling,
            batch_deadline: deploy.deadline.unwrap_or(Millis(FETCH.0 + slowest_ms)),
            rollback_max_unavailable: deploy.rollback.max_unavailable,
        }
    }

    /// The timing of a rollout of that pipeline, which is within its environment's floors and knows what runs there.
    pub fn within(self, settings: &Settings) -> Self {
        let Settings { bake, in_place, batched, batch_deadline, .. } = *settings;
        Self { bake, in_place, batched, batch_deadline, ..self }
    }

    /// In how many batches a wave is changed.
    fn batches_of(&self, plan: &Plan, targets: &RoaringBitmap) -> u64 {
        if self.batched {
            return batches(targets, plan.max_unavailable, &plan.zones, plan.spread_zone);
        }
        u64::from(!targets.is_empty())
    }

    /// The least time for one target: an old instance drains on the way only when its successor waits for it.
    fn change_ms(&self) -> u64 {
        self.min_healthy.0 + if self.in_place { self.drain.0 } else { 0 }
    }
}

/// In how many batches `targets` are changed, one after the other, when `max_unavailable` may be so at once.
/// With `spread_zone`, no batch has targets of two zones.
pub fn batches(targets: &RoaringBitmap, max_unavailable: u32, zones: &[RoaringBitmap], spread_zone: bool) -> u64 {
    let size = u64::from(max_unavailable.max(1));
    if !spread_zone {
        return targets.len().div_ceil(size);
    }
    zones.iter().map(|zone| zone.intersection_len(targets).div_ceil(size)).sum()
}

/// The least time from the first change to the end of the rollout: every batch drains and proves itself in no more than the
/// time it must take, and each wave but the last bakes. Fetching, and the services' own start, come on top.
pub fn least_duration(plan: &Plan, timing: &Timing) -> Millis {
    let batches: u64 = plan.waves.iter().map(|wave| timing.batches_of(plan, &wave.targets)).sum();
    let bakes = plan.waves.len().saturating_sub(1) as u64;
    Millis(batches.saturating_mul(timing.change_ms()).saturating_add(bakes.saturating_mul(timing.bake.0)))
}

/// The least time to take the whole plan back: at once where services start beside, else in batches.
pub fn least_rollback_duration(plan: &Plan, timing: &Timing) -> Millis {
    if !timing.in_place {
        return timing.min_healthy;
    }
    let size = timing.rollback_max_unavailable.rounded_down(plan.total).max(1);
    Millis(batches(&plan.targets(), size, &plan.zones, plan.spread_zone).saturating_mul(timing.change_ms()))
}

/// How long a wave may take to converge: `batch_deadline` for each of its batches.
pub fn wave_deadline(plan: &Plan, wave: usize, timing: &Timing) -> Millis {
    let batches = plan.waves.get(wave).map_or(0, |wave| timing.batches_of(plan, &wave.targets));
    Millis(batches.max(1).saturating_mul(timing.batch_deadline.0))
}
