//! Broken rules, at least one for each invariant, that the simulation must notice: state broken around `apply`, or a check of `apply`
//! removed. The latter are noticed through what rogue actors propose.

use std::cell::Cell;

use crate::simulation::history::History;
use crate::{
    apply::{Applied, Check},
    build::{Attempt, Build},
    command::{Action, ArtifactAction, BuildAction, ClusterAction, Command, FleetAction, RolloutAction},
    pipeline::Pipeline,
    rejection::Rejection,
    release::Artifact,
    rollout::{Deployment, OpenRollout, Rollout, RolloutState},
    tables::{ReadTables, Scan, Tables, key},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// 1: assignments ignore the pipeline's concurrency.
    Concurrency,
    /// 2: a build gets a second live attempt.
    TwoAttempts,
    /// 3: a deposed leader is obeyed.
    StaleEpoch,
    /// 4: more targets are changed at once than may be.
    Availability,
    /// 5: the next wave starts without a verdict.
    NoVerdict,
    /// 6: a target that joins is put into the last wave.
    Membership,
    /// 7: going back ends before the targets are back.
    EarlyEnd,
    /// 8: what was rolled back is not quarantined.
    NoQuarantine,
    /// 9: an abort only pauses.
    WeakAbort,
    /// 10: a transition is made twice known.
    TwoEvents,
    /// 11: an artifact that is needed is deleted.
    Deleted,
    /// A release is changed.
    ChangedRelease,
    /// Nothing ever passes a bake.
    Stuck,
    /// `apply` does without this check.
    Removed(Check),
}

thread_local! {
    static REMOVED: Cell<Option<Check>> = const { Cell::new(None) };
}

/// The check that this thread's history does without.
pub(crate) fn removed_check() -> Option<Check> {
    REMOVED.get()
}

impl Plant {
    pub const ALL: [Plant; 18] = [
        Plant::Concurrency,
        Plant::TwoAttempts,
        Plant::StaleEpoch,
        Plant::Availability,
        Plant::NoVerdict,
        Plant::Membership,
        Plant::EarlyEnd,
        Plant::NoQuarantine,
        Plant::WeakAbort,
        Plant::TwoEvents,
        Plant::Deleted,
        Plant::ChangedRelease,
        Plant::Stuck,
        Plant::Removed(Check::Availability),
        Plant::Removed(Check::RollbackAvailability),
        Plant::Removed(Check::Verdict),
        Plant::Removed(Check::EveryTargetReverted),
        Plant::Removed(Check::Clock),
    ];
}

impl Plant {
    /// How the notice of it begins.
    pub fn notice(self) -> &'static str {
        match self {
            Plant::Concurrency => "1:",
            Plant::TwoAttempts => "2:",
            Plant::StaleEpoch => "3:",
            Plant::Availability => "4:",
            Plant::NoVerdict => "5:",
            Plant::Membership => "6:",
            Plant::EarlyEnd => "7:",
            Plant::NoQuarantine => "8:",
            Plant::WeakAbort => "9:",
            Plant::TwoEvents => "10:",
            Plant::Deleted | Plant::ChangedRelease => "11:",
            Plant::Stuck => "liveness:",
            Plant::Removed(Check::Availability | Check::RollbackAvailability) => "4:",
            Plant::Removed(Check::Verdict) => "5:",
            Plant::Removed(Check::EveryTargetReverted) => "7:",
            Plant::Removed(Check::Clock) => "time:",
        }
    }
}

/// Applies `command` by the broken rules.
pub fn apply(history: &mut History, plant: Plant, mut command: Command) -> Result<Applied, Rejection> {
    if let Plant::Removed(check) = plant {
        REMOVED.set(Some(check));
        let outcome = history.world.propose(command);
        REMOVED.set(None);
        return outcome;
    }
    match (plant, &mut command.action) {
        (Plant::StaleEpoch, action) if !matches!(action, Action::Cluster(ClusterAction::BeginEpoch { .. })) => {
            command.epoch = None
        }
        (Plant::Concurrency, Action::Build(BuildAction::Assign { .. })) => {
            let mut pipeline: Pipeline = history.world.get(key("shop"));
            let concurrency = std::mem::replace(&mut pipeline.concurrency, 64);
            history.world.tables.put(&pipeline).unwrap();
            let applied = history.world.propose(command);
            let mut pipeline: Pipeline = history.world.get(key("shop"));
            pipeline.concurrency = concurrency;
            history.world.tables.put(&pipeline).unwrap();
            return applied;
        }
        (Plant::TwoAttempts, Action::Build(BuildAction::Acknowledge { build, .. })) => {
            let mut build: Build = history.world.get(key(build.0));
            if let Some(live) = build.live_attempt().cloned() {
                build.attempts.push(Attempt { number: live.number + 1, ..live });
                history.world.tables.put(&build).unwrap();
            }
        }
        (Plant::Availability, Action::Rollout(RolloutAction::ChangeTargets { rollout, targets, .. })) => {
            let mut changed: Rollout = history.world.get(key(rollout.0));
            *targets = changed.wave_targets(&history.members()) - &changed.sets.changed - history.cordoned();
            let (most, spread) = (changed.plan.max_unavailable, changed.plan.spread_zone);
            changed.plan.max_unavailable = u32::MAX;
            changed.plan.spread_zone = false;
            history.world.tables.put(&changed).unwrap();
            let id = *rollout;
            let applied = history.world.propose(command);
            let mut changed: Rollout = history.world.get(key(id.0));
            (changed.plan.max_unavailable, changed.plan.spread_zone) = (most, spread);
            history.world.tables.put(&changed).unwrap();
            return applied;
        }
        (Plant::NoVerdict, Action::Rollout(RolloutAction::RecordElapsed { rollout, .. })) => {
            let mut rollout: Rollout = history.world.get(key(rollout.0));
            if !rollout.is_last_wave() && rollout.state.is_forward() {
                rollout.wave += 1;
                history.world.tables.put(&rollout).unwrap();
            }
        }
        (Plant::EarlyEnd, Action::Rollout(RolloutAction::RevertTargets { rollout, .. })) => {
            let id = *rollout;
            let applied = history.world.propose(command);
            let mut rollout: Rollout = history.world.get(key(id.0));
            rollout.sets.reverted = rollout.touched();
            rollout.sets.restored = rollout.touched();
            history.world.tables.put(&rollout).unwrap();
            return applied;
        }
        (Plant::WeakAbort, Action::Rollout(RolloutAction::Abort { rollout, why })) => {
            let (rollout, why) = (*rollout, why.clone());
            command.action = RolloutAction::Pause { rollout, why }.into();
        }
        (Plant::Deleted, Action::Artifact(ArtifactAction::Delete { digests })) => {
            for digest in digests {
                let mut artifact: Artifact = history.world.get(key(digest.hex().as_str()));
                artifact.deleted_at = Some(history.world.now);
                history.world.tables.put(&artifact).unwrap();
            }
        }
        _ => {}
    }
    let is_join = matches!(command.action, Action::Fleet(FleetAction::Join { .. }));
    let mut applied = history.world.propose(command)?;
    match plant {
        Plant::Membership if is_join => {
            for open in history.world.tables.scan::<OpenRollout>(&Scan::all(), 100).unwrap() {
                let mut rollout: Rollout = history.world.get(key(open.rollout.0));
                if rollout.state == RolloutState::Blocked {
                    continue;
                }
                if let Some(last) = rollout.plan.waves.last_mut() {
                    last.targets |= history.members();
                }
                history.world.tables.put(&rollout).unwrap();
            }
        }
        Plant::NoQuarantine => {
            for mut deployment in history.world.tables.scan::<Deployment>(&Scan::all(), 100).unwrap() {
                deployment.quarantined.clear();
                history.world.tables.put(&deployment).unwrap();
            }
        }
        Plant::TwoEvents => {
            if let Some(event) = applied.events.iter().find(|event| event.kind.is_rollout_transition()).cloned() {
                applied.events.push(event);
            }
        }
        Plant::ChangedRelease => {
            if let Some(id) = history.releases.first() {
                let mut release: crate::release::Release = history.world.get(crate::release::release_key(id));
                release.git_ref = "refs/heads/other".into();
                history.world.tables.put(&release).unwrap();
            }
        }
        _ => {}
    }
    Ok(applied)
}
