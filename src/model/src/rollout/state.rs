//! A rollout: moving an environment to a release. The rollout half of the state machine of a run.

use std::fmt;
use std::sync::Arc;

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::{archive::Archivable, change::Change, release::Uses};
use crate::{
    fleet::observation::TargetFailure,
    ids::{EnvironmentName, PipelineName, ReleaseId, RolloutId},
    principal::Principal,
    rollout::{BlockReason, EndReason, Evidence, PauseReason, RollbackReason, StartReason, plan::Plan},
    tables::{Key, Record, Table, key},
    units::{Millis, Timestamp},
};

/// How many failed targets a rollout keeps the evidence of.
pub const FAILURES_KEPT_MAX: usize = 20;

/// How many past releases a deployment remembers.
pub const HISTORY_MAX: usize = 50;

/// How often the time that a stage has taken is recorded, so that a new leader goes on from there.
pub const ELAPSED_EVERY: Millis = Millis::from_secs(5);

/// Where a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutState {
    /// Waits for what `blocked` names.
    Blocked,
    /// The first wave is being changed.
    Deploying,
    /// The first wave bakes.
    CanaryCheck,
    /// The later waves.
    RollingOut,
    /// Going back to the stable release.
    RollingBack,
    /// Done: the release is the environment's stable one.
    Deployed,
    /// Everything it touched is back on the stable release.
    RolledBack,
    /// Stopped before anything changed.
    Canceled,
    /// A rollback took its place.
    Preempted,
    /// Rolling back could not finish; a person is needed.
    Failed,
}

impl RolloutState {
    /// Every state.
    pub const ALL: [RolloutState; 10] = [
        RolloutState::Blocked,
        RolloutState::Deploying,
        RolloutState::CanaryCheck,
        RolloutState::RollingOut,
        RolloutState::RollingBack,
        RolloutState::Deployed,
        RolloutState::RolledBack,
        RolloutState::Canceled,
        RolloutState::Preempted,
        RolloutState::Failed,
    ];

    /// Whether nothing more will happen.
    pub fn is_end(self) -> bool {
        use RolloutState::*;
        matches!(self, Deployed | RolledBack | Canceled | Preempted | Failed)
    }

    /// Whether targets are being moved to the release.
    pub fn is_forward(self) -> bool {
        matches!(self, RolloutState::Deploying | RolloutState::CanaryCheck | RolloutState::RollingOut)
    }

    /// Whether the state machine has an arrow from here to `next`.
    pub fn may_become(self, next: RolloutState) -> bool {
        use RolloutState::*;
        match (self, next) {
            (Blocked, Deploying | Canceled | Preempted) => true,
            (Deploying, CanaryCheck | RollingOut | Deployed) | (CanaryCheck, RollingOut | Deployed) | (RollingOut, Deployed) => {
                true
            }
            (from, RollingBack | Preempted | Canceled | Failed) if from.is_forward() => true,
            (RollingBack, RolledBack | Failed | Preempted) => true,
            _ => false,
        }
    }

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            RolloutState::Blocked => "blocked",
            RolloutState::Deploying => "deploying",
            RolloutState::CanaryCheck => "canary-check",
            RolloutState::RollingOut => "rolling-out",
            RolloutState::RollingBack => "rolling-back",
            RolloutState::Deployed => "deployed",
            RolloutState::RolledBack => "rolled-back",
            RolloutState::Canceled => "canceled",
            RolloutState::Preempted => "preempted",
            RolloutState::Failed => "failed",
        }
    }
}

impl fmt::Display for RolloutState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a rollout is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Forward, gated.
    Deploy,
    /// Back, asked for by a person: skips bakes, ignores freezes, preempts.
    Rollback,
}

/// How the waves are changed and judged: the pipeline file within the environment's floors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Whether the first wave is a canary whose bake has a state of its own.
    pub canary: bool,
    /// Whether an instance must stop before its successor can start, so that each change costs availability.
    pub in_place: bool,
    /// Whether a wave is changed in batches of what may be unavailable at once, and not all at once.
    pub batched: bool,
    /// How long each wave but the last is watched after it converged.
    pub bake: Millis,
    /// How long a batch may take to converge.
    pub batch_deadline: Millis,
    /// How long a batch may take to go back. By the releases that it goes between, of which the stable one may be the slower.
    pub rollback_deadline: Millis,
    /// How many targets may be unavailable at once while rolling back.
    pub rollback_max_unavailable: u32,
    /// No automatic rollback across this release: a failing verdict pauses instead.
    pub irreversible: bool,
}

/// What must hold before the next wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// All of the wave's targets are healthy within its deadline.
    Convergence,
    /// They stay so for a while.
    Bake,
}

impl Gate {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Gate::Convergence => "convergence",
            Gate::Bake => "bake",
        }
    }
}

/// What a gate concluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The next step may be taken.
    Pass,
    /// Roll back.
    Fail,
    /// A person said to go on, whatever the gate would have said.
    Overridden,
}

impl Verdict {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Overridden => "overridden",
        }
    }
}

/// A verdict with its evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictRecord {
    /// Counted from 0.
    pub wave: u32,
    pub gate: Gate,
    pub verdict: Verdict,
    pub evidence: Evidence,
    /// Who recorded it.
    pub by: Principal,
    pub at: Timestamp,
}

/// A pause: a flag with a reason, not a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    pub reason: PauseReason,
    /// Who paused it.
    pub by: Principal,
    pub at: Timestamp,
}

/// Where the targets stand. Each is a set of target numbers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sets {
    /// Were assigned the release.
    pub changed: RoaringBitmap,
    /// Of `changed`: served nothing healthy before, so that changing them costs nothing.
    pub down_before: RoaringBitmap,
    /// Run the release and are healthy.
    pub healthy: RoaringBitmap,
    /// Of `changed`: reported that they could not run the release, or are no longer healthy.
    pub failed: RoaringBitmap,
    /// Have a service that no healthy instance answers for.
    pub unserving: RoaringBitmap,
    /// Were assigned the stable release again.
    pub reverted: RoaringBitmap,
    /// Of `reverted`: served nothing healthy before, so that taking them back costs nothing.
    pub down_before_revert: RoaringBitmap,
    /// Of `reverted`: were not restored within the rollback's deadline. The others go back all the same.
    pub given_up: RoaringBitmap,
    /// Are back on the stable release and healthy, or stopped where there is none.
    pub restored: RoaringBitmap,
    /// Could not go back.
    pub unrestored: RoaringBitmap,
    /// Of `changed`: were changed in the present wave, and planned for one before it.
    pub late: RoaringBitmap,
    /// Were left out because their agents were not connected; a later wave changes those that return, and the others converge after
    /// the rollout.
    pub unreachable: RoaringBitmap,
}

/// The evidence of one target's failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedTarget {
    pub target: u32,
    /// Whether it failed while going back.
    pub reverting: bool,
    pub failure: TargetFailure,
    pub at: Timestamp,
}

/// What targets are assigned other than the stable release: release by release.
pub type Before = Vec<(Option<ReleaseId>, RoaringBitmap)>;

/// Moving an environment to a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    pub id: RolloutId,
    pub pipeline: PipelineName,
    pub environment: EnvironmentName,
    /// The release that it moves to.
    pub release: ReleaseId,
    /// The environment's stable release when it began: where a failure goes back to.
    pub stable: Option<ReleaseId>,
    pub purpose: Purpose,
    pub state: RolloutState,
    /// Why it has not begun.
    pub blocked: Option<BlockReason>,
    pub paused: Option<Pause>,
    pub plan: Plan,
    pub settings: Settings,
    /// What its targets were assigned before, where that was not the stable release.
    pub before: Before,
    /// The present wave, from 0.
    pub wave: u32,
    /// The gate that the present wave stands at.
    pub gate: Gate,
    /// How long it has stood there, by the clocks of the leaders that watched.
    pub elapsed: Millis,
    pub sets: Sets,
    pub verdicts: Vec<VerdictRecord>,
    /// The evidence of the first failures, at most [`FAILURES_KEPT_MAX`].
    pub failures: Vec<FailedTarget>,
    /// The rollback that took its place.
    pub preempted_by: Option<RolloutId>,
    pub start_reason: StartReason,
    /// Why it went back, where it did.
    pub rollback_reason: Option<RollbackReason>,
    /// Why it ended in another state than Deployed, where it did.
    pub end_reason: Option<EndReason>,
    /// Who asked for it.
    pub by: Principal,
    pub created_at: Timestamp,
    /// When it began to change targets.
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    /// The log index of its last change: its ETag.
    pub revision: u64,
}

/// How a wave stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaveStatus {
    /// Not begun, or never finished since the rollout ended before.
    Waiting,
    /// Being changed or judged.
    Active,
    Passed,
    Failed,
}

impl Rollout {
    /// The targets of the present wave among the environment's `members`: those planned for it, and those of the waves before that
    /// could not be changed in their time. Left for later, these would all change at once when the rollout ends, and unjudged.
    pub fn wave_targets(&self, members: &RoaringBitmap) -> RoaringBitmap {
        let (passed, left) = self.plan.waves.split_at(self.plan.waves.len().min(self.wave as usize));
        let passed = passed.iter().fold(RoaringBitmap::new(), |all, wave| all | &wave.targets);
        let mut targets = passed & &self.sets.unreachable;
        targets |= &self.sets.late;
        if let Some(wave) = left.first() {
            targets |= &wave.targets;
        }
        targets & members
    }

    /// How many of the targets attempted up to now may have failed, for the present wave to pass.
    pub fn max_failures(&self) -> u64 {
        self.plan.waves.get(self.wave as usize).map_or(0, |wave| u64::from(wave.max_failures))
    }

    /// The targets that going back concerns: those that were assigned its release, and those that what it preempted had assigned
    /// something else than the stable release.
    pub fn touched(&self) -> RoaringBitmap {
        self.before.iter().fold(self.sets.changed.clone(), |all, (_, targets)| all | targets)
    }

    /// `targets` without those that were down before, which count against no one. On a first deploy every target was down before, and all
    /// of them count.
    pub fn without_down_before(&self, targets: RoaringBitmap) -> RoaringBitmap {
        if self.stable.is_some() { targets - &self.sets.down_before } else { targets }
    }

    /// The targets that were not back on the stable release within the rollback's deadline, and still are not.
    pub fn given_up(&self) -> RoaringBitmap {
        let mut given_up = self.sets.given_up.clone();
        if self.state == RolloutState::RollingBack && self.elapsed > self.settings.rollback_deadline {
            given_up |= &self.sets.reverted;
        }
        given_up - &self.sets.restored
    }

    /// How many assignments it has made, forward and back: grows with every batch.
    pub fn targets_assigned(&self) -> u64 {
        self.sets.changed.len() + self.sets.reverted.len()
    }

    /// How the wave `number`, from 0, stands.
    pub fn wave_status(&self, number: u32) -> WaveStatus {
        let failed = self.verdicts.iter().any(|record| record.wave == number && record.verdict == Verdict::Fail);
        match self.state {
            _ if failed => WaveStatus::Failed,
            RolloutState::Deployed => WaveStatus::Passed,
            _ if number < self.wave => WaveStatus::Passed,
            state if number == self.wave && state.is_forward() => WaveStatus::Active,
            _ => WaveStatus::Waiting,
        }
    }

    /// Whether the present wave is the last.
    pub fn is_last_wave(&self) -> bool {
        self.wave as usize + 1 >= self.plan.waves.len()
    }
}

impl Record for Rollout {
    const TABLE: Table = Table::Rollouts;
    const IS_FOLLOWED: bool = true;
    const HAS_USES: bool = true;

    fn key(&self) -> Key {
        key(self.id.0)
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Rollout(record))
    }

    fn uses(&self) -> Uses {
        let before = self.before.iter().filter_map(|(release, _)| release.as_ref());
        let releases = before.chain(&self.stable).chain([&self.release]).cloned().collect();
        match self.ended_at {
            None => Uses { needed: releases, ..Uses::default() },
            Some(at) => {
                let ended = Some((Archivable::Rollout(self.id), self.pipeline.clone(), at));
                Uses { named: releases, ended, ..Uses::default() }
            }
        }
    }
}

/// A rollout that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRollout {
    pub rollout: RolloutId,
}

impl Record for OpenRollout {
    const TABLE: Table = Table::OpenRollouts;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        key(self.rollout.0)
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::OpenRollout(record))
    }
}

/// A rollout that ended, as its deployment remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    pub release: ReleaseId,
    pub rollout: RolloutId,
    /// The state that the rollout ended in.
    pub end: RolloutState,
    pub at: Timestamp,
}

/// A release that may not be deployed here until a person clears it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    pub release: ReleaseId,
    /// The rollout that went back from it.
    pub rollout: RolloutId,
    pub reason: RollbackReason,
    pub at: Timestamp,
}

/// What a pipeline has in an environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    pub environment: EnvironmentName,
    pub pipeline: PipelineName,
    /// What every target runs, but those that an open rollout has moved and the retained ones.
    pub stable: Option<ReleaseId>,
    /// The rollout that changes targets now.
    pub rollout: Option<RolloutId>,
    /// The rollout that waits for it.
    pub next: Option<RolloutId>,
    /// Ended rollouts, newest first.
    pub history: Vec<Past>,
    pub quarantined: Vec<Quarantined>,
    /// What cordoned targets stay on although the stable release is another one, until they are uncordoned.
    #[serde(default)]
    pub retained: Before,
}

impl Deployment {
    /// The release to go back to from `from`: the last that ended as Deployed, is not `from` and was not rolled back.
    pub fn former(&self, from: Option<&ReleaseId>) -> Option<&ReleaseId> {
        let is_good = |past: &&Past| {
            past.end == RolloutState::Deployed
                && Some(&past.release) != from
                && !self.quarantined.iter().any(|quarantined| quarantined.release == past.release)
        };
        self.history.iter().find(is_good).map(|past| &past.release)
    }
}

/// How many former good releases of a deployment can be gone back to, besides the present one.
pub const FORMER_RELEASES_KEPT: usize = 3;

impl Deployment {
    /// Whether it says what its targets run.
    pub fn is_in_use(&self) -> bool {
        self.stable.is_some() || self.rollout.is_some()
    }

    /// The releases whose artifacts must stay: the stable one and the last good ones, without those that may not be deployed.
    pub fn rollback_candidates(&self) -> Vec<&ReleaseId> {
        let mut kept: Vec<&ReleaseId> = self.stable.iter().collect();
        for past in self.history.iter().filter(|past| past.end == RolloutState::Deployed) {
            let may_run = !self.quarantined.iter().any(|quarantined| quarantined.release == past.release);
            if may_run && !kept.contains(&&past.release) && kept.len() < self.stable.iter().len() + FORMER_RELEASES_KEPT {
                kept.push(&past.release);
            }
        }
        kept
    }

    /// Remembers the end of a rollout. What is forgotten for it is never a good release that could be gone back to.
    pub fn remember(&mut self, past: Past) {
        self.history.insert(0, past);
        if self.history.len() <= HISTORY_MAX {
            return;
        }
        let mut needed: Vec<ReleaseId> = self.rollback_candidates().into_iter().cloned().collect();
        let mut keep = Vec::with_capacity(self.history.len());
        for past in &self.history {
            let place = needed.iter().position(|release| past.end == RolloutState::Deployed && *release == past.release);
            keep.push(place.map(|place| needed.swap_remove(place)).is_some());
        }
        if let Some(oldest) = keep.iter().rposition(|keep| !keep) {
            self.history.remove(oldest);
        }
    }

    /// Lets `target` follow the stable release again. Returns whether it was retained on another one.
    pub fn release_retained(&mut self, target: u32) -> bool {
        let was_retained = self.retained.iter_mut().map(|(_, targets)| targets.remove(target)).fold(false, |any, was| any | was);
        self.retained.retain(|(_, targets)| !targets.is_empty());
        was_retained
    }

    /// Lets `target` stay on `release`.
    pub fn retain(&mut self, target: u32, release: Option<ReleaseId>) {
        self.release_retained(target);
        match self.retained.iter_mut().find(|(retained, _)| *retained == release) {
            Some((_, targets)) => {
                targets.insert(target);
            }
            None => self.retained.push((release, RoaringBitmap::from_iter([target]))),
        }
    }
}

impl Record for Deployment {
    const TABLE: Table = Table::Deployments;
    const IS_FOLLOWED: bool = true;
    const HAS_USES: bool = true;

    fn key(&self) -> Key {
        deployment_key(&self.environment, &self.pipeline)
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Deployment(record))
    }

    fn uses(&self) -> Uses {
        let retained = self.retained.iter().filter_map(|(release, _)| release.as_ref());
        let needed = self.rollback_candidates().into_iter().chain(retained).cloned().collect();
        let quarantined = self.quarantined.iter().map(|kept| &kept.release);
        let named = self.history.iter().map(|past| &past.release).chain(quarantined).cloned().collect();
        Uses { needed, named, ended: None }
    }
}

/// The key of a deployment.
pub fn deployment_key(environment: &EnvironmentName, pipeline: &PipelineName) -> Key {
    key(environment.as_str()).then(pipeline.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rollout_state_is_an_end_or_can_be_stopped() {
        for state in RolloutState::ALL {
            let nexts: Vec<_> = RolloutState::ALL.into_iter().filter(|next| state.may_become(*next)).collect();
            if state.is_end() {
                assert!(nexts.is_empty(), "{state} is an end but leads to {nexts:?}");
            } else {
                let stops = [RolloutState::RollingBack, RolloutState::Canceled];
                assert!(
                    state == RolloutState::RollingBack || stops.iter().any(|stop| nexts.contains(stop)),
                    "{state} cannot be stopped"
                );
            }
        }
    }
}
