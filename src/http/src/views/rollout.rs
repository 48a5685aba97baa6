//! How a rollout looks from outside: its waves with where their targets are, its gate and what that waits for, its verdicts and
//! the evidence of failures.

use roaring::RoaringBitmap;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    build::millis,
    plan::TimingView,
    targets::{TargetSet, name_of},
};
use swell_model::{
    actor_failure::{ActorFailure, actor_failure_key},
    event::Subject,
    fleet::{Environment, observation::TargetFailure},
    release::{Release, release_key},
    rollout::{
        Deployment, FailedTarget, Purpose, Rollout, RolloutState, VerdictRecord,
        decide::{Seen, next},
        deployment_key,
        plan::{Timing, least_duration, least_rollback_duration},
        plan_input::{blocked, connected},
    },
    tables::{ReadTables, TablesError, key},
};

/// How many names a wave's sets have.
const WAVE_NAMED_MAX: usize = 20;

/// Moving an environment to a release.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RolloutView {
    /// Its id, such as `r7`.
    pub id: String,
    /// Whose.
    pub pipeline: String,
    /// Where.
    pub environment: String,
    /// To which release.
    pub release: String,
    /// The environment's stable release when it began: where a failure goes back to.
    pub stable: Option<String>,
    /// `deploy` or `rollback`.
    pub purpose: String,
    /// Where it is, such as `canary-check`.
    pub state: String,
    /// Whether nothing more will happen.
    pub ended: bool,
    /// What it waits for, in a phrase; none when it ended.
    pub waits_for: Option<String>,
    /// The pause, where it is paused.
    pub paused: Option<PauseView>,
    /// How many targets it changes.
    pub total: u32,
    /// Where they are.
    pub counts: Counts,
    /// The present wave, from 0.
    pub wave: u32,
    /// The gate that the present wave stands at; none when it is over.
    pub gate: Option<GateView>,
    /// The waves; empty in lists.
    pub waves: Vec<WaveView>,
    /// What the gates concluded.
    pub verdicts: Vec<VerdictView>,
    /// The evidence of the first failures; empty in lists.
    pub failures: Vec<FailedTargetView>,
    /// How many targets may be unavailable at once because of it.
    pub max_unavailable: u32,
    /// How many of the targets attempted up to now may have failed, for the present wave to pass.
    pub max_failures: u64,
    /// How long it takes at least; none in lists.
    pub timing: Option<TimingView>,
    /// Whether a failing verdict pauses instead of going back.
    pub irreversible: bool,
    /// Which rollback took its place.
    pub preempted_by: Option<String>,
    /// Why it was asked for, or why it went back.
    pub why: Option<String>,
    /// Who asked for it.
    pub by: String,
    /// When it was asked for.
    pub created_at: u64,
    /// When it began to change targets.
    pub started_at: Option<u64>,
    /// When it ended.
    pub ended_at: Option<u64>,
    /// Its revision: the `ETag`.
    pub revision: u64,
}

/// Who paused it and why.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PauseView {
    /// Why.
    pub why: String,
    /// Who.
    pub by: String,
    /// Since when.
    pub at: u64,
}

/// How many targets are where. A target counts in one of `waiting`, `changing`, `healthy`, `failed`, `reverting`, `restored`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct Counts {
    /// Not told yet.
    pub waiting: u64,
    /// Told, not healthy yet.
    pub changing: u64,
    /// Run the release and are healthy.
    pub healthy: u64,
    /// Could not run it, or are no longer healthy.
    pub failed: u64,
    /// Told to go back, not there yet.
    pub reverting: u64,
    /// Back on the stable release.
    pub restored: u64,
    /// Left out because their agents are not connected (also counted above).
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

/// What must hold before the next wave.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct GateView {
    /// `convergence` or `bake`.
    pub gate: String,
    /// How long the wave has stood there, as recorded last (every 5 s).
    pub elapsed_ms: u64,
    /// How long it bakes, or may take to converge.
    pub limit_ms: u64,
}

/// Targets that are changed together.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WaveView {
    /// From 0.
    pub number: u32,
    /// The region that all of them are in, where regions are changed one by one.
    pub region: Option<String>,
    /// `waiting`, `at-work`, `passed` or `failed`.
    pub state: String,
    /// Its targets.
    pub targets: TargetSet,
    /// Where they are.
    pub counts: Counts,
    /// Those that failed.
    pub failed: TargetSet,
}

/// What a gate concluded.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct VerdictView {
    /// Of which wave, from 0.
    pub wave: u32,
    /// `convergence` or `bake`.
    pub gate: String,
    /// `pass`, `fail` or `overridden`.
    pub verdict: String,
    /// On what grounds, in a sentence.
    pub evidence: String,
    /// Who recorded it.
    pub by: String,
    /// When.
    pub at: u64,
}

/// The evidence of one target's failure.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FailedTargetView {
    /// Which target.
    pub target: String,
    /// Whether it failed while going back.
    pub reverting: bool,
    /// When.
    pub at: u64,
    /// What it said.
    #[serde(flatten)]
    pub failure: TargetFailureView,
}

/// What a target said of a failure.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TargetFailureView {
    /// Of which service, where it is one's.
    pub service: Option<String>,
    /// What happened, in a sentence.
    pub reason: String,
    /// What to do about it.
    pub hint: String,
    /// What the process ended with, such as `exit 3`.
    pub exit: Option<String>,
    /// What the last probe answered.
    pub probe: Option<String>,
    /// The end of its output, at most 4 KiB.
    pub output: String,
    /// Up to 64 KiB of its output: `/v1/blobs/{digest}`.
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
    /// With its waves, failures and timing.
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

    /// Without them.
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
                why: pause.why.clone(),
                by: pause.by.to_string(),
                at: pause.at.0,
            }),
            total: rollout.plan.total,
            counts: Counts::of(rollout, &all),
            wave: rollout.wave,
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
            why: rollout.why.clone(),
            by: rollout.by.to_string(),
            created_at: rollout.created_at.0,
            started_at: millis(rollout.started_at),
            ended_at: millis(rollout.ended_at),
            revision: rollout.revision,
        })
    }
}

/// The rollout's own decision, asked about what state knows. Which agents have been gone for longer than the grace only the
/// leader's actor has seen, so none counts as lost here.
fn waits_for<T: ReadTables>(tables: &T, rollout: &Rollout) -> Result<Option<String>, TablesError> {
    if rollout.state.is_end() {
        return Ok((rollout.state == RolloutState::Failed).then(|| "a person: not everything could go back".to_owned()));
    }
    if let Some(trouble) = tables.get::<ActorFailure>(&actor_failure_key(&Subject::Rollout(rollout.id)))? {
        return Ok(Some(trouble.waits_for()));
    }
    let environment: Option<Environment> = tables.get(&key(rollout.environment.as_str()))?;
    let deployment: Option<Deployment> = tables.get(&deployment_key(&rollout.environment, &rollout.pipeline))?;
    let now_blocked = environment.and_then(|environment| {
        let others = deployment.filter(|deployment| deployment.rollout != Some(rollout.id));
        blocked(&environment, others.as_ref(), rollout.purpose)
    });
    let seen = Seen {
        connected: &connected(tables)?,
        lost: &RoaringBitmap::new(),
        elapsed: rollout.elapsed,
        blocked: now_blocked.as_ref().or(rollout.blocked.as_ref()),
    };
    let decided = next(tables, rollout, seen)?;
    Ok(Some(decided.waits_for).filter(|phrase| !phrase.is_empty()))
}

fn wave<T: ReadTables>(tables: &T, rollout: &Rollout, number: u32) -> Result<WaveView, TablesError> {
    let planned = &rollout.plan.waves[number as usize];
    let counts = Counts::of(rollout, &planned.targets);
    let failed = &planned.targets & &rollout.sets.failed;
    let refused = rollout.verdicts.iter().any(|kept| kept.wave == number && kept.verdict == swell_model::rollout::Verdict::Fail);
    let state = match rollout.state {
        _ if refused => "failed",
        RolloutState::Deployed => "passed",
        _ if number < rollout.wave => "passed",
        state if number == rollout.wave && state.is_forward() => "at-work",
        _ => "waiting",
    };
    Ok(WaveView {
        number,
        region: planned.region.clone(),
        state: state.to_owned(),
        targets: TargetSet::of(tables, &planned.targets, WAVE_NAMED_MAX)?,
        counts,
        failed: TargetSet::of(tables, &failed, WAVE_NAMED_MAX)?,
    })
}

fn verdict(kept: &VerdictRecord) -> VerdictView {
    VerdictView {
        wave: kept.wave,
        gate: kept.gate.name().to_owned(),
        verdict: kept.verdict.name().to_owned(),
        evidence: kept.evidence.clone(),
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
    fn a_rollout_says_where_its_targets_are_and_what_it_waits_for() {
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
