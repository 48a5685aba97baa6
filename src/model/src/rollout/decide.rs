//! What a rollout does next, and what it waits for. The actor that asks carries it out and asks again.

use roaring::RoaringBitmap;

use crate::{
    command::RolloutAction,
    fleet::{
        Environment, Target,
        observation::{Observation, observation_key},
    },
    ids::TargetName,
    rollout::{
        Blocked, Gate, Purpose, Rollout, RolloutState, Verdict,
        plan::{WaveState, next_batch},
    },
    tables::{ReadTables, TablesError, key},
    units::Millis,
};

/// How many targets a sentence names before it counts.
const NAMED_MAX: usize = 5;

/// What the caller saw, besides state.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The targets whose agents are connected.
    pub connected: &'a RoaringBitmap,
    /// The targets whose agents have been gone for longer than the grace.
    pub lost: &'a RoaringBitmap,
    /// How long the present gate has been watched.
    pub elapsed: Millis,
    /// What would block it, were it to start now.
    pub blocked: Option<&'a Blocked>,
}

/// What to do now and what it waits for after that.
#[derive(Debug, Clone, PartialEq)]
pub struct Next {
    /// What to propose.
    pub action: Option<RolloutAction>,
    /// What it waits for, in a phrase for people; empty when it ended.
    pub waits_for: String,
}

impl Next {
    fn wait(waits_for: impl Into<String>) -> Self {
        Self { action: None, waits_for: waits_for.into() }
    }

    fn act(action: RolloutAction, waits_for: impl Into<String>) -> Self {
        Self { action: Some(action), waits_for: waits_for.into() }
    }
}

/// What `rollout` does next.
pub fn next<T: ReadTables>(tables: &T, rollout: &Rollout, seen: Seen<'_>) -> Result<Next, TablesError> {
    match rollout.state {
        RolloutState::Blocked => Ok(match seen.blocked {
            Some(blocked) => Next::wait(blocked.to_string()),
            None => Next::act(RolloutAction::Unblock { rollout: rollout.id }, "its turn"),
        }),
        state if state.is_end() => Ok(Next::wait("")),
        RolloutState::RollingBack => back(tables, rollout, seen),
        _ => match &rollout.paused {
            Some(pause) => Ok(Next::wait(format!("{} to resume it: {}", pause.by.name, pause.why))),
            None => forward(tables, rollout, seen),
        },
    }
}

/// The present wave without the targets that left the environment: they count against no one.
struct Wave {
    members: RoaringBitmap,
    targets: RoaringBitmap,
    /// Told, not yet healthy, and not failed.
    pending: RoaringBitmap,
    /// Failed, or not healthy when the time was over; of any wave.
    failed: RoaringBitmap,
    /// Those of `failed` that were just not healthy in time.
    overdue: RoaringBitmap,
    /// Those of `failed` that count: where something ran before, targets that were down already count against no one.
    counted: RoaringBitmap,
}

fn forward<T: ReadTables>(tables: &T, rollout: &Rollout, seen: Seen<'_>) -> Result<Next, TablesError> {
    let sets = &rollout.sets;
    let environment: Option<Environment> = tables.get(&key(rollout.environment.as_str()))?;
    let members = environment.map(|environment| environment.members).unwrap_or_default();
    let targets = rollout.wave_targets(&members);
    let late = seen.elapsed > rollout.settings.batch_deadline && rollout.gate == Gate::Convergence;
    let mut pending = &(&(&targets & &sets.changed) - &sets.healthy) - &sets.failed;
    if rollout.purpose == Purpose::Rollback {
        // It goes back without the lost ones: they converge when they return.
        pending -= seen.lost;
    }
    let mut failed = &(&sets.failed & &sets.changed) & &members;
    // Gates wait for a target that just went away; only when it is lost, its time counts.
    let overdue = if late { &pending & &(seen.connected | seen.lost) } else { RoaringBitmap::new() };
    failed |= &overdue;
    let counted = if rollout.stable.is_some() { &failed - &sets.down_before } else { failed.clone() };
    // A rollback tries every target before it gives up: there is nothing better to go back to.
    let settled = rollout.purpose == Purpose::Deploy || late || targets.is_subset(&(&(&sets.healthy | &failed) | seen.lost));
    let wave = Wave { members, targets, pending: pending - &failed, failed, overdue, counted };
    if settled && wave.counted.len() > rollout.max_failures() {
        let rule = format!("at most {} may", rollout.max_failures());
        return Ok(Next::act(verdict(rollout, Verdict::Fail, failing(tables, rollout, &wave, &rule)?), "the verdict"));
    }
    match rollout.gate {
        Gate::Convergence => converge(tables, rollout, seen, &wave, late),
        Gate::Bake if seen.elapsed < rollout.settings.bake => {
            Ok(Next::wait(format!("the bake: {} of {}", whole_secs(seen.elapsed), rollout.settings.bake)))
        }
        Gate::Bake => {
            if let Some(wait) = nobody_tells(tables, rollout, seen, &wave)? {
                return Ok(wait);
            }
            let changed = &sets.changed & &wave.members;
            let (healthy, changed) = ((&(&sets.healthy & &changed) & seen.connected).len(), changed.len());
            let evidence = format!("{healthy} of {changed} targets stayed healthy for {}", rollout.settings.bake);
            Ok(Next::act(verdict(rollout, Verdict::Pass, evidence), "the verdict"))
        }
    }
}

fn converge<T: ReadTables>(tables: &T, rollout: &Rollout, seen: Seen<'_>, wave: &Wave, late: bool) -> Result<Next, TablesError> {
    let sets = &rollout.sets;
    let untold = &wave.targets - &sets.changed;
    let mut changeable = &untold & seen.connected;
    let mut left_out = &untold & seen.lost;
    for index in changeable.clone() {
        if tables.get::<Target>(&key(index))?.is_some_and(|target| target.cordoned.is_some()) {
            changeable.remove(index);
            left_out.insert(index);
        }
    }
    let left_out = left_out - &sets.unreachable;
    let batch = batch(tables, rollout, &wave.members, &changeable)?;
    if !batch.is_empty() || !left_out.is_empty() {
        let action = RolloutAction::ChangeTargets { rollout: rollout.id, targets: batch, unreachable: left_out };
        return Ok(Next::act(action, "its targets"));
    }
    if !wave.pending.is_empty() {
        let names = named(tables, &wave.pending)?;
        if late {
            return Ok(Next::wait(format!("{names} to connect again or to be lost")));
        }
        let left = Millis(rollout.settings.batch_deadline.0.saturating_sub(seen.elapsed.0));
        return Ok(Next::wait(format!("{names} to become healthy (at most {} more)", whole_secs(left))));
    }
    if !changeable.is_empty() {
        let names = named(tables, &changeable)?;
        if late {
            // Nothing is under way and the budget is spent: waiting longer changes nothing.
            let down = &(&(&sets.changed & &wave.members) - &sets.healthy) - &sets.down_before;
            let down = named(tables, &down)?;
            let evidence = format!("{names} cannot be changed: {down} use up what may be unavailable at once");
            return Ok(Next::act(verdict(rollout, Verdict::Fail, evidence), "the verdict"));
        }
        return Ok(Next::wait(format!("{names} until others are available again")));
    }
    let undecided = &(&untold - &sets.unreachable) - seen.lost;
    if !undecided.is_empty() {
        return Ok(Next::wait(format!("{} to connect", named(tables, &undecided)?)));
    }
    if let Some(wait) = nobody_tells(tables, rollout, seen, wave)? {
        return Ok(wait);
    }
    let (healthy, told) = ((&wave.targets & &sets.healthy).len(), (&wave.targets & &sets.changed).len());
    let mut evidence = format!("{healthy} of {told} targets are healthy");
    if told < wave.targets.len() {
        evidence += &format!("; {} are not connected or cordoned and converge later", wave.targets.len() - told);
    }
    Ok(Next::act(verdict(rollout, Verdict::Pass, evidence), "the verdict"))
}

/// What becomes of a wave that would pass, but by what it does not say: too many of its targets are silent, and no data is not good
/// news; or none is healthy, however many may fail. A rollback goes on: its release was judged before.
fn nobody_tells<T: ReadTables>(tables: &T, rollout: &Rollout, seen: Seen<'_>, wave: &Wave) -> Result<Option<Next>, TablesError> {
    if rollout.purpose == Purpose::Rollback {
        return Ok(None);
    }
    let healthy = &wave.targets & &rollout.sets.healthy;
    let away = &(&healthy - seen.connected) - seen.lost;
    if !away.is_empty() {
        return Ok(Some(Next::wait(format!("{} to connect again or to be lost", named(tables, &away)?))));
    }
    let no_data = "no data is not good news: promote or abort";
    if !healthy.is_disjoint(seen.connected) {
        let silent = &healthy & seen.lost;
        if silent.is_empty() || (&wave.counted | &silent).len() <= rollout.max_failures() {
            return Ok(None);
        }
        let silent = named(tables, &silent)?;
        return Ok(Some(Next::wait(format!("{silent} to connect again: healthy at first and now lost, and {no_data}"))));
    }
    let told = &wave.targets & &rollout.sets.changed;
    let judged = if rollout.stable.is_some() { &told - &rollout.sets.down_before } else { told.clone() };
    if !judged.is_empty() && judged.is_subset(&wave.failed) {
        let evidence = failing(tables, rollout, wave, "no target of this wave is healthy")?;
        return Ok(Some(Next::act(verdict(rollout, Verdict::Fail, evidence), "the verdict")));
    }
    Ok(match (wave.targets.is_empty(), told.is_empty()) {
        // The waves before it were judged, and there is nothing left of this one.
        (true, _) if rollout.wave > 0 => None,
        // Nobody of this wave is there to be told, and those who were told before tell how the release does: a host that is off for a
        // week does not hold up the others.
        (false, true) if rollout.wave > 0 && !rollout.sets.healthy.is_disjoint(seen.connected) => None,
        (true, _) => Some(Next::wait(format!("a person: every target of this wave left, and {no_data}"))),
        (false, true) => Some(Next::wait(format!("a target of this wave to connect: none of them is, and {no_data}"))),
        (false, false) if !healthy.is_empty() => Some(Next::wait(format!(
            "{} to connect: no other target of this wave is healthy, and {no_data}",
            named(tables, &healthy)?
        ))),
        (false, false) => {
            let told = named(tables, &told)?;
            Some(Next::wait(format!("{told} to become healthy: no target of this wave is, and {no_data}")))
        }
    })
}

/// Which of `changeable` may be told now, within what may be unavailable at once. A target that left takes nothing of it.
fn batch<T: ReadTables>(
    tables: &T,
    rollout: &Rollout,
    members: &RoaringBitmap,
    changeable: &RoaringBitmap,
) -> Result<RoaringBitmap, TablesError> {
    if !rollout.settings.batched {
        // The old instance answers until the new one does: telling a whole wave takes nothing away.
        return Ok(changeable.clone());
    }
    let mut down = rollout.sets.down_before.clone();
    for index in changeable {
        let observed: Option<Observation> = tables.get(&observation_key(&rollout.pipeline, index))?;
        if !observed.is_some_and(|observation| observation.report.serving) {
            down.insert(index);
        }
    }
    Ok(next_batch(&WaveState {
        members: changeable,
        started: &(&rollout.sets.changed & members),
        settled: &rollout.sets.healthy,
        down_before: &down,
        zones: &rollout.plan.zones,
        max_unavailable: rollout.plan.max_unavailable,
        spread_zone: rollout.plan.spread_zone,
    }))
}

fn back<T: ReadTables>(tables: &T, rollout: &Rollout, seen: Seen<'_>) -> Result<Next, TablesError> {
    let sets = &rollout.sets;
    let environment: Option<Environment> = tables.get(&key(rollout.environment.as_str()))?;
    let members = environment.map(|environment| environment.members).unwrap_or_default();
    let touched = rollout.touched() & members;
    let untold = &touched - &sets.reverted;
    let missing = &(&touched & &sets.reverted) - &sets.restored;
    let late = seen.elapsed > rollout.settings.rollback_deadline;
    if !untold.is_empty() {
        let targets = if rollout.settings.in_place {
            // What serves nothing is repaired at once; what still serves goes in bounded steps. A step that did not succeed in its
            // time does not keep the others: they go back all the same.
            let broken = &untold & &(&sets.unserving | seen.lost);
            let on_the_way = if late { 0 } else { (&missing - seen.lost).len() };
            let room = u64::from(rollout.settings.rollback_max_unavailable).saturating_sub(on_the_way);
            let rest: RoaringBitmap = (&untold - &broken).into_iter().take(room as usize).collect();
            broken | rest
        } else {
            untold
        };
        if !targets.is_empty() {
            return Ok(Next::act(RolloutAction::RevertTargets { rollout: rollout.id, targets }, "its targets to go back"));
        }
    } else if missing.is_subset(seen.lost) || late {
        let unreachable = &missing & &(seen.lost | &(&missing - seen.connected));
        return Ok(Next::act(RolloutAction::FinishRollback { rollout: rollout.id, unreachable }, "the end"));
    }
    Ok(Next::wait(format!("{} to go back", named(tables, &(&missing - seen.lost))?)))
}

fn verdict(rollout: &Rollout, verdict: Verdict, evidence: String) -> RolloutAction {
    RolloutAction::RecordVerdict { rollout: rollout.id, wave: rollout.wave, gate: rollout.gate, verdict, evidence }
}

/// The sentence that says why a gate fails: who failed, the `rule` that this breaks, and what the first of them said.
fn failing<T: ReadTables>(tables: &T, rollout: &Rollout, wave: &Wave, rule: &str) -> Result<String, TablesError> {
    let mut sentence = format!("{} failed, and {rule}", named(tables, &wave.counted)?);
    let kept = rollout.failures.iter().find(|kept| !kept.reverting && wave.counted.contains(kept.target));
    match kept {
        Some(kept) => sentence += &format!(": {}", kept.failure.reason),
        None if !wave.overdue.is_empty() => sentence += &format!(": not healthy within {}", rollout.settings.batch_deadline),
        None => {}
    }
    Ok(sentence)
}

/// `web-1, web-2 and 7 more`.
fn named<T: ReadTables>(tables: &T, targets: &RoaringBitmap) -> Result<String, TablesError> {
    let mut names: Vec<String> = Vec::new();
    for index in targets.iter().take(NAMED_MAX) {
        let name: Option<TargetName> = tables.get::<Target>(&key(index))?.map(|target| target.info.name);
        names.push(name.map_or_else(|| format!("target {index}"), |name| name.to_string()));
    }
    let more = targets.len().saturating_sub(names.len() as u64);
    Ok(if more > 0 { format!("{} and {more} more", names.join(", ")) } else { names.join(", ") })
}

fn whole_secs(millis: Millis) -> Millis {
    Millis(millis.0 / 1000 * 1000)
}
