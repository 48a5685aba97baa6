//! The API's view of a rollout: waves with the states of their targets, gate, reason for waiting, verdicts and failures.

use roaring::RoaringBitmap;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    build::millis,
    plan::TimingView,
    reason,
    targets::{TargetSet, name_of},
};
use swell_model::{
    actor_failure::{ActorFailure, actor_failure_key},
    event::Subject,
    fleet::observation::TargetFailure,
    release::{Release, release_key},
    rollout::{
        FailedTarget, Purpose, Rollout, RolloutState, VerdictRecord, WaveStatus,
        decide::{Seen, next},
        plan::{Timing, least_duration, least_rollback_duration},
    },
    tables::{ReadTables, TablesError},
};

/// How many targets of a wave are listed by name.
const WAVE_NAMED_MAX: usize = 20;

/// Deploy of a release to an environment, or return to an earlier one.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RolloutView {
    /// Id, such as `r7`.
    pub id: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Name of the environment.
    pub environment: String,
    /// Release to deploy.
    pub release: String,
    /// Stable release of the environment at the start, which a failure returns to.
    pub stable: Option<String>,
    /// `deploy` or `rollback`.
    pub purpose: String,
    /// State, such as `canary-check`.
    pub state: String,
    /// Whether the state is final.
    pub ended: bool,
    /// What it waits for; null after its end.
    pub waits_for: Option<String>,
    /// The pause, if it is paused.
    pub paused: Option<PauseView>,
    /// Number of targets.
    pub total: u32,
    /// Targets by state.
    pub counts: Counts,
    /// Number of the current wave, from 1.
    pub wave: u32,
    /// Current gate; null after the last.
    pub gate: Option<GateView>,
    /// Waves in order; empty in lists.
    pub waves: Vec<WaveView>,
    /// Verdicts of the gates so far.
    pub verdicts: Vec<VerdictView>,
    /// First failures of targets; empty in lists.
    pub failures: Vec<FailedTargetView>,
    /// Number of targets that may be unavailable at once.
    pub max_unavailable: u32,
    /// Number of targets changed so far that may fail before the current wave fails.
    pub max_failures: u64,
    /// Least durations; null in lists.
    pub timing: Option<TimingView>,
    /// Whether a failing gate pauses the rollout instead of rolling back.
    pub irreversible: bool,
    /// Id of the rollback that replaced it.
    pub preempted_by: Option<String>,
    /// Reason of the request, or of the rollback.
    pub why: Option<String>,
    /// Principal that requested it.
    pub by: String,
    /// Time of the request.
    pub created_at: u64,
    /// Time of the first change.
    pub started_at: Option<u64>,
    /// Time of its end.
    pub ended_at: Option<u64>,
    /// Revision, also sent as `ETag`.
    pub revision: u64,
}

/// Pause of a rollout.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PauseView {
    /// Reason of the pause.
    pub why: String,
    /// Principal that paused it.
    pub by: String,
    /// Time of the pause.
    pub at: u64,
}

/// Targets by state. A target counts in one of `waiting`, `changing`, `healthy`, `failed`, `reverting`, `restored`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct Counts {
    /// Not changed yet.
    pub waiting: u64,
    /// Being changed, not healthy yet.
    pub changing: u64,
    /// Healthy on the release.
    pub healthy: u64,
    /// Failed to run the release, or no longer healthy.
    pub failed: u64,
    /// Being reverted to the stable release.
    pub reverting: u64,
    /// Back on the stable release.
    pub restored: u64,
    /// Skipped because the agent is not connected; also counted above.
    pub unreachable: u64,
}

impl Counts {
    fn of(rollout: &Rollout, within: &RoaringBitmap) -> Self {
        let sets = &rollout.sets;
        let changed = &sets.changed & within;
        let reverted = &sets.reverted & within;
        let forward = &changed - &reverted;
        let failed = &forward & &sets.failed;
        let healthy = &(&forward & &sets.healthy) - &failed;
        let restored = &reverted & &sets.restored;
        Self {
            waiting: (within - &changed).len(),
            changing: forward.len() - failed.len() - healthy.len(),
            healthy: healthy.len(),
            failed: failed.len(),
            reverting: reverted.len() - restored.len(),
            restored: restored.len(),
            unreachable: (&(&sets.unreachable - &sets.changed) & within).len(),
        }
    }
}

/// Condition for the next wave.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct GateView {
    /// `convergence` or `bake`.
    pub gate: String,
    /// Time at this gate so far, recorded every 5 s.
    pub elapsed_ms: u64,
    /// Bake time, or time allowed to become healthy.
    pub limit_ms: u64,
}

/// Targets that are changed together.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WaveView {
    /// Number of the wave, from 1.
    pub number: u32,
    /// Region of the targets, if regions are changed one by one.
    pub region: Option<String>,
    /// `waiting`, `at-work`, `passed` or `failed`.
    pub state: String,
    /// Targets of the wave.
    pub targets: TargetSet,
    /// Targets by state.
    pub counts: Counts,
    /// Targets that failed.
    pub failed: TargetSet,
}

/// Verdict of a gate.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct VerdictView {
    /// Number of the wave, from 1.
    pub wave: u32,
    /// `convergence` or `bake`.
    pub gate: String,
    /// `pass`, `fail` or `overridden`.
    pub verdict: String,
    /// Evidence for the verdict, as text.
    pub evidence: String,
    /// Principal that recorded it.
    pub by: String,
    /// Time of the verdict.
    pub at: u64,
}

/// Failure of a target.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FailedTargetView {
    /// Name of the target.
    pub target: String,
    /// Whether it failed while being reverted.
    pub reverting: bool,
    /// Time of the failure.
    pub at: u64,
    /// Failure as the target reported it.
    #[serde(flatten)]
    pub failure: TargetFailureView,
}

/// Failure as a target reported it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TargetFailureView {
    /// Name of the service, if one failed.
    pub service: Option<String>,
    /// Sentence that says what failed and why.
    pub reason: String,
    /// What to do about it.
    pub hint: String,
    /// End of the process, such as `exit 3`.
    pub exit: Option<String>,
    /// Result of the last probe.
    pub probe: Option<String>,
    /// End of the output, at most 4 KiB.
    pub output: String,
    /// Digest of up to 64 KiB of output, for `/v1/blobs/{digest}`.
    pub output_blob: Option<String>,
}

impl From<TargetFailure> for TargetFailureView {
    fn from(failure: TargetFailure) -> Self {
        Self {
            service: failure.service.map(|name| name.to_string()),
            reason: failure.reason,
            hint: failure.hint,
            exit: failure.exit,
            probe: failure.probe,
            output: failure.output,
            output_blob: failure.output_blob.map(|digest| digest.to_string()),
        }
    }
}

impl RolloutView {
    /// The rollout with its waves, failures and timing.
    pub fn full<T: ReadTables>(tables: &T, rollout: &Rollout) -> Result<Self, TablesError> {
        let mut view = Self::brief(tables, rollout)?;
        for number in 0..rollout.plan.waves.len() as u32 {
            view.waves.push(wave(tables, rollout, number)?);
        }
        for kept in &rollout.failures {
            view.failures.push(failed_target(tables, kept)?);
        }
        let release: Option<Release> = tables.get(&release_key(&rollout.release))?;
        view.timing = release.map(|release| {
            let timing = Timing::of(&release.file, &release.file.deploy_to(&rollout.environment));
            let timing = timing.within(&rollout.settings);
            TimingView {
                least_ms: least_duration(&rollout.plan, &timing).0,
                least_rollback_ms: least_rollback_duration(&rollout.plan, &timing).0,
            }
        });
        Ok(view)
    }

    /// The rollout without waves, failures and timing.
    pub fn brief<T: ReadTables>(tables: &T, rollout: &Rollout) -> Result<Self, TablesError> {
        let all = rollout.plan.targets();
        let at_gate = rollout.state.is_forward();
        let limit = match rollout.gate {
            swell_model::rollout::Gate::Convergence => rollout.settings.batch_deadline,
            swell_model::rollout::Gate::Bake => rollout.settings.bake,
        };
        Ok(Self {
            id: rollout.id.to_string(),
            pipeline: rollout.pipeline.to_string(),
            environment: rollout.environment.to_string(),
            release: rollout.release.to_string(),
            stable: rollout.stable.as_ref().map(ToString::to_string),
            purpose: match rollout.purpose {
                Purpose::Deploy => "deploy",
                Purpose::Rollback => "rollback",
            }
            .to_owned(),
            state: rollout.state.to_string(),
            ended: rollout.state.is_end(),
            waits_for: waits_for(tables, rollout)?,
            paused: rollout.paused.as_ref().map(|pause| PauseView {
                why: reason::pause(&pause.reason),
                by: pause.by.to_string(),
                at: pause.at.0,
            }),
            total: rollout.plan.total,
            counts: Counts::of(rollout, &all),
            wave: rollout.wave + 1,
            gate: at_gate.then(|| GateView {
                gate: rollout.gate.name().to_owned(),
                elapsed_ms: rollout.elapsed.0,
                limit_ms: limit.0,
            }),
            waves: Vec::new(),
            verdicts: rollout.verdicts.iter().map(verdict).collect(),
            failures: Vec::new(),
            max_unavailable: rollout.plan.max_unavailable,
            max_failures: rollout.max_failures(),
            timing: None,
            irreversible: rollout.settings.irreversible,
            preempted_by: rollout.preempted_by.map(|id| id.to_string()),
            why: reason::why(rollout),
            by: rollout.by.to_string(),
            created_at: rollout.created_at.0,
            started_at: millis(rollout.started_at),
            ended_at: millis(rollout.ended_at),
            revision: rollout.revision,
        })
    }
}

/// What the rollout's decision waits for, computed from state.
fn waits_for<T: ReadTables>(tables: &T, rollout: &Rollout) -> Result<Option<String>, TablesError> {
    if rollout.state.is_end() {
        return Ok((rollout.state == RolloutState::Failed).then(|| reason::failed(rollout)));
    }
    if let Some(failure) = tables.get::<ActorFailure>(&actor_failure_key(&Subject::Rollout(rollout.id)))? {
        return Ok(Some(reason::actor_failure(&failure)));
    }
    let seen = Seen::from_state(tables, rollout, rollout.elapsed)?;
    Ok(next(tables, rollout, &seen)?.waits_for.as_ref().map(reason::wait))
}

fn wave<T: ReadTables>(tables: &T, rollout: &Rollout, number: u32) -> Result<WaveView, TablesError> {
    let planned = &rollout.plan.waves[number as usize];
    let counts = Counts::of(rollout, &planned.targets);
    let failed = &planned.targets & &rollout.sets.failed;
    let state = match rollout.wave_status(number) {
        WaveStatus::Waiting => "waiting",
        WaveStatus::Active => "at-work",
        WaveStatus::Passed => "passed",
        WaveStatus::Failed => "failed",
    };
    Ok(WaveView {
        number: number + 1,
        region: planned.region.clone(),
        state: state.to_owned(),
        targets: TargetSet::of(tables, &planned.targets, WAVE_NAMED_MAX)?,
        counts,
        failed: TargetSet::of(tables, &failed, WAVE_NAMED_MAX)?,
    })
}

fn verdict(kept: &VerdictRecord) -> VerdictView {
    VerdictView {
        wave: kept.wave + 1,
        gate: kept.gate.name().to_owned(),
        verdict: kept.verdict.name().to_owned(),
        evidence: reason::evidence(&kept.evidence),
        by: kept.by.to_string(),
        at: kept.at.0,
    }
}

fn failed_target<T: ReadTables>(tables: &T, kept: &FailedTarget) -> Result<FailedTargetView, TablesError> {
    Ok(FailedTargetView {
        target: name_of(tables, kept.target)?,
        reverting: kept.reverting,
        at: kept.at.0,
        failure: kept.failure.clone().into(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::{
        apply::testing::{FILE, World},
        command::RolloutAction,
        fleet::observation::Progress,
    };

    #[test]
    fn rollout_view_counts_targets_and_says_what_it_waits_for() {
        let (mut world, file) = World::with_fleet(6, FILE);
        let release = world.release(1, &file);
        let id = world.start(&release, Purpose::Deploy).unwrap();
        let canary = world.rollout(id).plan.waves[0].targets.clone();
        let told = RolloutAction::ChangeTargets { rollout: id, targets: canary.clone(), unreachable: RoaringBitmap::new() };
        world.ok(told);

        let view = RolloutView::full(&world.tables, &world.rollout(id)).unwrap();
        assert_eq!((view.state.as_str(), view.total, view.waves.len()), ("deploying", 6, 3));
        assert_eq!((view.counts.changing, view.counts.waiting), (1, 5));
        assert_eq!(view.waves[0].state, "at-work");
        let name = &view.waves[0].targets.names[0];
        let waits_for = view.waits_for.unwrap();
        assert!(waits_for.starts_with(&format!("{name} to become healthy")), "{waits_for}");
        assert!(view.timing.unwrap().least_ms >= 20_000, "two bakes of 10 s");

        world.report(canary.min().unwrap(), Some(&release), Progress::Healthy, true);
        let view = RolloutView::full(&world.tables, &world.rollout(id)).unwrap();
        assert_eq!((view.counts.healthy, view.waves[0].counts.healthy), (1, 1));
    }
}
