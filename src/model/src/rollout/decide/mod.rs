//! What a rollout does next, and what it waits for. Pure: the actor that asks carries it out and asks again.

mod backward;
mod forward;

use roaring::RoaringBitmap;

use crate::{
    command::RolloutAction,
    fleet::{
        Environment,
        observation::{Observation, observation_key},
    },
    rollout::{
        BlockReason, Deployment, Rollout, RolloutState, WaitReason, deployment_key,
        plan_input::{blocked, connected, lost},
    },
    tables::{ReadTables, TablesError, key},
    units::Millis,
};

/// What a decision depends on besides the rollout itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// The targets whose agents are connected to any server.
    pub connected: RoaringBitmap,
    /// The targets whose agents have been gone for longer than the grace.
    pub lost: RoaringBitmap,
    /// How long the present gate has been watched.
    pub elapsed: Millis,
    /// What would block it, were it to start now.
    pub blocked: Option<BlockReason>,
}

impl Seen {
    /// Reads what state knows. `elapsed` comes from the leader's [`super::StageClock`]; whoever does not lead has the rollout's own.
    ///
    /// # Errors
    /// [`TablesError`] when state cannot be read.
    pub fn from_state<T: ReadTables>(tables: &T, rollout: &Rollout, elapsed: Millis) -> Result<Self, TablesError> {
        let blocked = if rollout.state == RolloutState::Blocked { blocks(tables, rollout)? } else { None };
        Ok(Self { connected: connected(tables)?, lost: lost(tables)?, elapsed, blocked })
    }
}

fn blocks<T: ReadTables>(tables: &T, rollout: &Rollout) -> Result<Option<BlockReason>, TablesError> {
    let Some(environment) = tables.get::<Environment>(&key(rollout.environment.as_str()))? else { return Ok(None) };
    let deployment: Option<Deployment> = tables.get(&deployment_key(&rollout.environment, &rollout.pipeline))?;
    Ok(blocked(&environment, deployment.as_ref(), rollout.purpose))
}

/// What to do now, and what the rollout waits for after that.
#[derive(Debug, Clone, PartialEq)]
pub struct Next {
    /// What to propose.
    pub action: Option<RolloutAction>,
    /// None when it has ended.
    pub waits_for: Option<WaitReason>,
}

impl Next {
    fn wait(reason: WaitReason) -> Self {
        Self { action: None, waits_for: Some(reason) }
    }

    fn act(action: RolloutAction) -> Self {
        Self { action: Some(action), waits_for: Some(WaitReason::NextStep) }
    }
}

/// Decides what `rollout` does next.
///
/// # Errors
/// [`TablesError`] when state cannot be read.
pub fn next<T: ReadTables>(tables: &T, rollout: &Rollout, seen: &Seen) -> Result<Next, TablesError> {
    match rollout.state {
        RolloutState::Blocked => Ok(match &seen.blocked {
            Some(blocked) => Next::wait(WaitReason::Blocked(blocked.clone())),
            None => Next::act(RolloutAction::Unblock { rollout: rollout.id }),
        }),
        state if state.is_end() => Ok(Next { action: None, waits_for: None }),
        RolloutState::RollingBack => backward::next(tables, rollout, seen),
        _ => match &rollout.paused {
            Some(pause) => Ok(Next::wait(WaitReason::Paused { by: pause.by.clone(), reason: pause.reason.clone() })),
            None => forward::next(tables, rollout, seen),
        },
    }
}

fn members<T: ReadTables>(tables: &T, rollout: &Rollout) -> Result<RoaringBitmap, TablesError> {
    let environment: Option<Environment> = tables.get(&key(rollout.environment.as_str()))?;
    Ok(environment.map(|environment| environment.members).unwrap_or_default())
}

/// Those of `targets` on which no healthy instance answers, by what they reported last.
fn serving_nothing<T: ReadTables>(tables: &T, rollout: &Rollout, targets: &RoaringBitmap) -> Result<RoaringBitmap, TablesError> {
    let mut down = RoaringBitmap::new();
    for index in targets {
        let observed: Option<Observation> = tables.get(&observation_key(&rollout.pipeline, index))?;
        if !observed.is_some_and(|observation| observation.report.serving) {
            down.insert(index);
        }
    }
    Ok(down)
}
