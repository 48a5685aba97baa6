//! Forward: changing targets wave by wave, and what the gates conclude.

use roaring::RoaringBitmap;

use crate::rollout::apply::{back, end, illegal, move_to, open, save};
use crate::{
    apply::context::Context,
    event::{DataKey, EventKind, Subject},
    fleet::{
        Target,
        observation::{Observation, Progress, Report, observation_key},
    },
    ids::RolloutId,
    rejection::{Rejection, RuleError},
    rollout::{Gate, Pause, Purpose, Rollout, RolloutState, Verdict, VerdictRecord, assignment::assigned_release, availability},
    tables::{Tables, key},
    units::Millis,
};

/// Tells targets of the present wave to run the release. Refuses what would break an invariant, whoever asks.
pub(crate) fn change_targets<T: Tables>(
    context: &mut Context<'_, T>,
    id: RolloutId,
    targets: &RoaringBitmap,
    unreachable: &RoaringBitmap,
) -> Result<Subject, RuleError> {
    let mut rollout = open(context, id, "change targets")?;
    if !rollout.state.is_forward() || rollout.gate != Gate::Convergence || rollout.paused.is_some() {
        return Err(illegal(&rollout, "change targets now"));
    }
    let members = context.environment(&rollout.environment)?.members;
    let wave = rollout.wave_targets(&members);
    if !(targets | unreachable).is_subset(&wave) || !targets.is_disjoint(&rollout.sets.changed) {
        return Err(illegal(&rollout, "change targets of another wave, or that left, or twice"));
    }
    let deployment = context.deployment(&rollout.environment, &rollout.pipeline)?;
    for index in targets {
        if context.tables.get::<Target>(&key(index))?.is_some_and(|target| target.cordoned.is_some()) {
            return Err(illegal(&rollout, "change a cordoned target"));
        }
        let observed: Option<Observation> = context.tables.get(&observation_key(&rollout.pipeline, index))?;
        let report = observed.map(|observation| observation.report);
        if !report.as_ref().is_some_and(|report| report.serving) {
            rollout.sets.down_before.insert(index);
        }
        // A target that was told to run this release already says nothing new: what it said last counts.
        let is_healthy =
            |report: Report| report.release.as_ref() == Some(&rollout.release) && report.progress == Progress::Healthy;
        if assigned_release(&deployment, Some(&rollout), index).as_ref() == Some(&rollout.release)
            && report.is_some_and(is_healthy)
        {
            rollout.sets.healthy.insert(index);
            rollout.sets.down_before.remove(index);
        }
    }
    let first_batch = rollout.sets.changed.is_empty();
    let planned = rollout.plan.waves.get(rollout.wave as usize);
    rollout.sets.late |= planned.map_or_else(|| targets.clone(), |wave| targets - &wave.targets);
    rollout.sets.changed |= targets;
    rollout.sets.unreachable |= unreachable;
    rollout.sets.unreachable -= &rollout.sets.changed;
    if let Some(why) = availability::violation(&rollout, &members, targets) {
        return Err(Rejection::Unavailable { subject: Subject::Rollout(id), why }.into());
    }
    if !targets.is_empty() {
        // The deadline is a batch's: a new one has all of it.
        rollout.elapsed = Millis(0);
    }
    let event = context.event(Subject::Rollout(id), EventKind::RolloutTargetsChanged);
    event
        .data(DataKey::Wave, rollout.wave + 1)
        .data(DataKey::Targets, targets.len())
        .data(DataKey::Unreachable, unreachable.len());
    if rollout.state == RolloutState::Deploying && !rollout.settings.canary && !first_batch {
        move_to(context, &mut rollout, RolloutState::RollingOut, None)?;
    }
    save(context, rollout)
}

/// Keeps how long the present gate has been watched, so that a new leader goes on from there.
pub(crate) fn record_elapsed<T: Tables>(
    context: &mut Context<'_, T>,
    id: RolloutId,
    wave: u32,
    gate: Gate,
    elapsed: Millis,
) -> Result<Subject, RuleError> {
    let mut rollout = open(context, id, "be watched")?;
    if (rollout.wave, rollout.gate) != (wave, gate) || elapsed < rollout.elapsed {
        return Err(illegal(&rollout, "be watched at another gate, or backwards"));
    }
    rollout.elapsed = elapsed;
    save(context, rollout)
}

/// Records what a gate concluded and takes the step that follows from it.
pub(crate) fn record_verdict<T: Tables>(
    context: &mut Context<'_, T>,
    id: RolloutId,
    wave: u32,
    gate: Gate,
    verdict: Verdict,
    evidence: &str,
) -> Result<Subject, RuleError> {
    let rollout = open(context, id, "be judged")?;
    judge(context, rollout, (wave, gate), verdict, evidence)
}

fn judge<T: Tables>(
    context: &mut Context<'_, T>,
    mut rollout: Rollout,
    (wave, gate): (u32, Gate),
    verdict: Verdict,
    evidence: &str,
) -> Result<Subject, RuleError> {
    let id = rollout.id;
    if !rollout.state.is_forward() || (rollout.wave, rollout.gate) != (wave, gate) {
        return Err(illegal(&rollout, "be judged at another gate"));
    }
    if rollout.paused.is_some() && verdict == Verdict::Pass {
        return Err(illegal(&rollout, "go on while it is paused"));
    }
    if verdict != Verdict::Fail {
        let members = context.environment(&rollout.environment)?.members;
        check_passable(&rollout, &members, verdict)?;
    }
    let by = context.principal.clone();
    let record = VerdictRecord { wave, gate, verdict, evidence: evidence.to_owned(), by, at: context.at };
    rollout.verdicts.push(record);
    let event = context.event(Subject::Rollout(id), EventKind::RolloutGateJudged);
    event.data(DataKey::Wave, wave + 1).data(DataKey::Gate, gate.name()).data(DataKey::Verdict, verdict.name()).note(evidence);
    match verdict {
        Verdict::Pass | Verdict::Overridden => pass(context, rollout),
        // There is nothing better to go back to: its targets stay told to run the release, and a person looks.
        Verdict::Fail if rollout.purpose == Purpose::Rollback => end(context, rollout, RolloutState::Failed, Some(evidence)),
        Verdict::Fail if rollout.settings.irreversible => {
            let why = format!("{evidence}; the release is irreversible, so a person decides: promote or abort");
            context.event(Subject::Rollout(id), EventKind::RolloutPaused).note(&why);
            rollout.paused = Some(Pause { why, by: context.principal.clone(), at: context.at });
            save(context, rollout)
        }
        Verdict::Fail => back::begin(context, rollout, evidence),
    }
}

/// A verdict may be late: what its gate guards must hold when it is applied, not only when it was reached.
fn check_passable(rollout: &Rollout, members: &RoaringBitmap, verdict: Verdict) -> Result<(), RuleError> {
    let (sets, wave) = (&rollout.sets, rollout.wave_targets(members));
    // Nobody passes a wave that was not changed: what is left of it would change at once when the rollout ends.
    if rollout.gate == Gate::Convergence && !wave.is_subset(&(&sets.changed | &sets.unreachable)) {
        return Err(illegal(rollout, "pass a wave that has targets left to change"));
    }
    if verdict == Verdict::Overridden {
        return Ok(());
    }
    let told = &wave & &sets.changed;
    let judged = if rollout.stable.is_some() { &told - &sets.down_before } else { told };
    if rollout.purpose == Purpose::Deploy && !judged.is_empty() && judged.is_disjoint(&sets.healthy) {
        return Err(illegal(rollout, "pass a wave that has no healthy target"));
    }
    let mut failed = &sets.failed & &sets.changed & members;
    if rollout.gate == Gate::Convergence && rollout.purpose == Purpose::Deploy {
        failed |= (wave & &sets.changed) - &sets.healthy;
    }
    if rollout.stable.is_some() {
        failed -= &sets.down_before;
    }
    if failed.len() > rollout.max_failures() {
        return Err(illegal(rollout, "pass a gate while more targets fail than may"));
    }
    Ok(())
}

/// A person passes the present gate, whatever it would say.
pub(crate) fn promote<T: Tables>(context: &mut Context<'_, T>, id: RolloutId, why: &str) -> Result<Subject, RuleError> {
    let mut rollout = open(context, id, "be promoted")?;
    if !rollout.state.is_forward() {
        return Err(illegal(&rollout, "be promoted"));
    }
    rollout.paused = None;
    let (wave, gate) = (rollout.wave, rollout.gate);
    judge(context, rollout, (wave, gate), Verdict::Overridden, why)
}

/// What follows a passed gate: the bake, the next wave, or the end.
fn pass<T: Tables>(context: &mut Context<'_, T>, mut rollout: Rollout) -> Result<Subject, RuleError> {
    rollout.elapsed = Millis(0);
    let last = rollout.is_last_wave();
    let bakes = rollout.settings.bake > Millis(0) && !last;
    if rollout.gate == Gate::Convergence && bakes {
        rollout.gate = Gate::Bake;
        if rollout.settings.canary && rollout.wave == 0 {
            move_to(context, &mut rollout, RolloutState::CanaryCheck, None)?;
        }
        return save(context, rollout);
    }
    if last {
        return end(context, rollout, RolloutState::Deployed, None);
    }
    rollout.gate = Gate::Convergence;
    rollout.wave += 1;
    rollout.sets.late.clear();
    if rollout.state != RolloutState::RollingOut {
        move_to(context, &mut rollout, RolloutState::RollingOut, None)?;
    }
    context
        .event(Subject::Rollout(rollout.id), EventKind::RolloutWaveStarted)
        .data(DataKey::Wave, rollout.wave + 1)
        .data(DataKey::Waves, rollout.plan.waves.len());
    save(context, rollout)
}
