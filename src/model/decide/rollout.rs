//! What a rollout does next, and what it waits for. The actor that asks carries it out and asks again.

use roaring::RoaringBitmap;

use crate::model::{
    command::RolloutAction,
    fleet::Target,
    ids::TargetName,
    observation::{Observation, observation_key},
    plan::{WaveState, next_batch},
    rollout::{Blocked, Gate, Purpose, Rollout, RolloutState, Verdict},
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

fn forward<T: ReadTables>(tables: &T, rollout: &Rollout, seen: Seen<'_>) -> Result<Next, TablesError> {
    let sets = &rollout.sets;
    let wave = rollout.wave_targets();
    let late = seen.elapsed > rollout.settings.batch_deadline && rollout.gate == Gate::Convergence;
    let pending = &(&(&wave & &sets.changed) - &sets.healthy) - &sets.failed;
    let mut failed = &sets.failed & &sets.changed;
    if late {
        failed |= &pending;
    }
    // Where something ran before, targets that were down already count against no one.
    let counted = if rollout.stable.is_some() { &failed - &sets.down_before } else { failed.clone() };
    // A rollback tries every target before it gives up: there is nothing better to go back to.
    let settled = rollout.purpose == Purpose::Deploy || late || wave.is_subset(&(&(&sets.healthy | &failed) | seen.lost));
    if settled && counted.len() > u64::from(rollout.plan.max_failures) {
        let evidence = failing(tables, rollout, &counted, if late { Some(&pending) } else { None })?;
        return Ok(Next::act(verdict(rollout, Verdict::Fail, evidence), "the verdict"));
    }
    match rollout.gate {
        Gate::Convergence => converge(tables, rollout, seen, &wave, &failed),
        Gate::Bake if seen.elapsed >= rollout.settings.bake => {
            let (healthy, changed) = ((&sets.healthy & &sets.changed).len(), sets.changed.len());
            let evidence = format!("{healthy} of {changed} targets stayed healthy for {}", rollout.settings.bake);
            Ok(Next::act(verdict(rollout, Verdict::Pass, evidence), "the verdict"))
        }
        Gate::Bake => Ok(Next::wait(format!("the bake: {} of {}", whole_secs(seen.elapsed), rollout.settings.bake))),
    }
}

fn converge<T: ReadTables>(
    tables: &T,
    rollout: &Rollout,
    seen: Seen<'_>,
    wave: &RoaringBitmap,
    failed: &RoaringBitmap,
) -> Result<Next, TablesError> {
    let sets = &rollout.sets;
    let untold = wave - &sets.changed;
    let changeable = &untold & seen.connected;
    let left_out = &(&untold & seen.lost) - &sets.unreachable;
    let batch = batch(tables, rollout, &changeable)?;
    if !batch.is_empty() || !left_out.is_empty() {
        let action = RolloutAction::ChangeTargets { rollout: rollout.id, targets: batch, unreachable: left_out };
        return Ok(Next::act(action, "its targets"));
    }
    let waiting = &(&(wave & &sets.changed) - &sets.healthy) - failed;
    if !waiting.is_empty() {
        let names = named(tables, &waiting)?;
        let left = Millis(rollout.settings.batch_deadline.0.saturating_sub(seen.elapsed.0));
        return Ok(Next::wait(format!("{names} to become healthy (at most {} more)", whole_secs(left))));
    }
    let undecided = &(&untold - &sets.unreachable) - seen.lost;
    if !undecided.is_empty() {
        let names = named(tables, &undecided)?;
        let what = if changeable.is_empty() { "to connect" } else { "until others are available again" };
        return Ok(Next::wait(format!("{names} {what}")));
    }
    let healthy = wave & &sets.healthy;
    if healthy.is_empty() && rollout.purpose == Purpose::Deploy {
        return Ok(Next::wait("a target of this wave to connect: none of them is, and no data is not good news"));
    }
    let (healthy, told) = (healthy.len(), (wave & &sets.changed).len());
    let mut evidence = format!("{healthy} of {told} targets are healthy");
    if told < wave.len() {
        evidence += &format!("; {} are not connected and converge when they return", wave.len() - told);
    }
    Ok(Next::act(verdict(rollout, Verdict::Pass, evidence), "the verdict"))
}

/// Which of `changeable` may be told now, within what may be unavailable at once.
fn batch<T: ReadTables>(tables: &T, rollout: &Rollout, changeable: &RoaringBitmap) -> Result<RoaringBitmap, TablesError> {
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
        started: &rollout.sets.changed,
        settled: &rollout.sets.healthy,
        down_before: &down,
        broken_by_us: &RoaringBitmap::new(),
        unreachable: &RoaringBitmap::new(),
        zones: &rollout.plan.zones,
        max_unavailable: rollout.plan.max_unavailable,
        spread_zone: rollout.plan.spread_zone,
    }))
}

fn back<T: ReadTables>(tables: &T, rollout: &Rollout, seen: Seen<'_>) -> Result<Next, TablesError> {
    let sets = &rollout.sets;
    let untold = &sets.changed - &sets.reverted;
    let on_the_way = &(&sets.reverted - &sets.restored) - seen.lost;
    if !untold.is_empty() {
        let targets = if rollout.settings.in_place {
            // What serves nothing is repaired at once; what still serves goes in bounded steps.
            let broken = &untold & &(&sets.unserving | seen.lost);
            let room = u64::from(rollout.settings.rollback_max_unavailable).saturating_sub(on_the_way.len());
            let rest: RoaringBitmap = (&untold - &broken).into_iter().take(room as usize).collect();
            broken | rest
        } else {
            untold
        };
        if !targets.is_empty() {
            return Ok(Next::act(RolloutAction::RevertTargets { rollout: rollout.id, targets }, "its targets to go back"));
        }
    }
    let missing = &sets.reverted - &sets.restored;
    let late = seen.elapsed > rollout.settings.batch_deadline;
    if sets.reverted == sets.changed && (missing.is_subset(seen.lost) || late) {
        let unreachable = &missing & &(seen.lost | &(&missing - seen.connected));
        return Ok(Next::act(RolloutAction::FinishRollback { rollout: rollout.id, unreachable }, "the end"));
    }
    Ok(Next::wait(format!("{} to go back", named(tables, &(&missing - seen.lost))?)))
}

fn verdict(rollout: &Rollout, verdict: Verdict, evidence: String) -> RolloutAction {
    RolloutAction::RecordVerdict { rollout: rollout.id, wave: rollout.wave, gate: rollout.gate, verdict, evidence }
}

/// The sentence that says why a gate fails: how many, and what the first of them said.
fn failing<T: ReadTables>(
    tables: &T,
    rollout: &Rollout,
    counted: &RoaringBitmap,
    late: Option<&RoaringBitmap>,
) -> Result<String, TablesError> {
    let most = rollout.plan.max_failures;
    let mut sentence = format!("{} failed, and at most {most} may", named(tables, counted)?);
    let kept = rollout.failures.iter().find(|kept| !kept.reverting && counted.contains(kept.target));
    match (kept, late) {
        (Some(kept), _) => sentence += &format!(": {}", kept.failure.reason),
        (None, Some(late)) if !late.is_empty() => {
            sentence += &format!(": not healthy within {}", rollout.settings.batch_deadline)
        }
        _ => {}
    }
    Ok(sentence)
}

/// `web-1, web-2 and 7 more`.
fn named<T: ReadTables>(tables: &T, targets: &RoaringBitmap) -> Result<String, TablesError> {
    let mut names: Vec<String> = Vec::new();
    for index in targets.iter().take(NAMED_MAX) {
        let name: Option<TargetName> = tables.get::<Target>(&key(index))?.map(|target| target.facts.name);
        names.push(name.map_or_else(|| format!("target {index}"), |name| name.to_string()));
    }
    let more = targets.len().saturating_sub(names.len() as u64);
    Ok(if more > 0 { format!("{} and {more} more", names.join(", ")) } else { names.join(", ") })
}

fn whole_secs(millis: Millis) -> Millis {
    Millis(millis.0 / 1000 * 1000)
}
