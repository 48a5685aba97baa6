//! Rollouts: starting one, driving it forward, taking it back, and counting what its targets report.
//!
//! `drive` and `back` hold the checks that make an unsafe step impossible, whoever asks for it.

mod back;
mod drive;
mod progress;
mod start;

pub(crate) use progress::Progress;
pub(crate) use start::start_automatically;

use std::collections::BTreeSet;

use crate::apply::context::Context;
use crate::{
    command::RolloutAction,
    event::{DataKey, EventKind, Subject},
    fleet::{PortLease, Target, lease_key, port_leases},
    rejection::{Rejection, RuleError},
    rollout::{
        Deployment, EndReason, OpenRollout, Past, Pause, PauseReason, Purpose, Rollout, RolloutState, StartReason,
        assignment::assigned_release,
        reason::{EventReason, bounded},
    },
    tables::{Tables, key},
};

pub(crate) fn apply<T: Tables>(context: &mut Context<'_, T>, action: &RolloutAction) -> Result<Subject, RuleError> {
    match action {
        RolloutAction::Start { environment, release, purpose, why, if_plan } => {
            let (purpose, if_plan, by) = (*purpose, *if_plan, context.principal.clone());
            let reason = StartReason::Requested(why.as_deref().map(bounded));
            start::start(context, start::Request { environment, release, purpose, reason, if_plan, by })
        }
        RolloutAction::Unblock { rollout } => start::unblock(context, *rollout),
        RolloutAction::ChangeTargets { rollout, targets, unreachable } => {
            drive::change_targets(context, *rollout, targets, unreachable)
        }
        RolloutAction::RecordElapsed { rollout, wave, gate, targets, elapsed } => {
            drive::record_elapsed(context, *rollout, (*wave, *gate, *targets), *elapsed)
        }
        RolloutAction::RecordVerdict { rollout, wave, gate, verdict, evidence } => {
            drive::record_verdict(context, *rollout, *wave, *gate, *verdict, evidence)
        }
        RolloutAction::RevertTargets { rollout, targets } => back::revert_targets(context, *rollout, targets),
        RolloutAction::FinishRollback { rollout, unreachable } => back::finish_rollback(context, *rollout, unreachable),
        RolloutAction::Pause { rollout, why } => {
            let mut rollout = open(context, *rollout, "be paused")?;
            if rollout.state == RolloutState::RollingBack {
                return Err(illegal(&rollout, "be paused: what was touched goes back first"));
            }
            pause(context, &mut rollout, PauseReason::Requested(bounded(why)));
            save(context, rollout)
        }
        RolloutAction::Resume { rollout } => {
            let mut rollout = open(context, *rollout, "be resumed")?;
            if rollout.paused.take().is_none() {
                return Err(illegal(&rollout, "be resumed: it is not paused"));
            }
            context.event(Subject::Rollout(rollout.id), EventKind::RolloutResumed);
            save(context, rollout)
        }
        RolloutAction::Abort { rollout, why } => back::abort(context, *rollout, why),
        RolloutAction::Promote { rollout, why } => drive::promote(context, *rollout, why),
    }
}

/// Pauses `rollout`. A rollout that is paused already keeps its first reason.
fn pause<T: Tables>(context: &mut Context<'_, T>, rollout: &mut Rollout, reason: PauseReason) {
    reason.describe(context.event(Subject::Rollout(rollout.id), EventKind::RolloutPaused));
    rollout.paused.get_or_insert(Pause { reason, by: context.principal.clone(), at: context.at });
}

/// The rollout, if it has not ended and is as the client saw it.
fn open<T: Tables>(context: &Context<'_, T>, id: crate::ids::RolloutId, verb: &str) -> Result<Rollout, RuleError> {
    let rollout = context.rollout(id)?;
    context.check_revision(&Subject::Rollout(id), rollout.revision)?;
    if rollout.state.is_end() { Err(illegal(&rollout, verb)) } else { Ok(rollout) }
}

fn illegal(rollout: &Rollout, verb: &str) -> RuleError {
    let (subject, state) = (Subject::Rollout(rollout.id), rollout.state.to_string());
    Rejection::Illegal { subject, state, verb: verb.to_owned() }.into()
}

/// The only place where a rollout's state changes.
fn move_to<T: Tables>(
    context: &mut Context<'_, T>,
    rollout: &mut Rollout,
    next: RolloutState,
    reason: Option<&dyn EventReason>,
) -> Result<(), RuleError> {
    if !rollout.state.may_become(next) {
        return Err(illegal(rollout, &format!("become {next}")));
    }
    let (at, from) = (context.at, rollout.state);
    rollout.state = next;
    rollout.ended_at = next.is_end().then_some(at);
    let event = context.event(Subject::Rollout(rollout.id), EventKind::of_rollout_state(next)).moved(from, next);
    event
        .data(DataKey::Pipeline, &rollout.pipeline)
        .data(DataKey::Environment, &rollout.environment)
        .data(DataKey::Release, &rollout.release);
    if let Some(reason) = reason {
        reason.describe(event);
    }
    Ok(())
}

fn save<T: Tables>(context: &mut Context<'_, T>, mut rollout: Rollout) -> Result<Subject, RuleError> {
    rollout.revision = context.index;
    context.tables.put(&rollout)?;
    Ok(Subject::Rollout(rollout.id))
}

/// Ends the rollout: the deployment remembers it and is free for the next one.
fn end<T: Tables>(
    context: &mut Context<'_, T>,
    mut rollout: Rollout,
    end: RolloutState,
    reason: Option<EndReason>,
) -> Result<Subject, RuleError> {
    let was_forward = rollout.state.is_forward();
    move_to(context, &mut rollout, end, reason.as_ref().map(|reason| reason as &dyn EventReason))?;
    rollout.paused = None;
    rollout.end_reason = reason;
    let mut deployment = context.deployment(&rollout.environment, &rollout.pipeline)?;
    // A rollback that fails on its way forward has nothing better to go back to: its release is the stable one all the same.
    let gave_up = end == RolloutState::Failed && was_forward && rollout.purpose == Purpose::Rollback;
    if end == RolloutState::Deployed || gave_up {
        retain_cordoned(context, &mut deployment, &rollout)?;
        release_ports(context, &deployment, &rollout)?;
        deployment.stable = Some(rollout.release.clone());
    }
    deployment.rollout = deployment.rollout.filter(|id| *id != rollout.id);
    deployment.next = deployment.next.filter(|id| *id != rollout.id);
    let past = Past { release: rollout.release.clone(), rollout: rollout.id, end, at: context.at };
    deployment.remember(past);
    context.tables.put(&deployment)?;
    context.tables.delete::<OpenRollout>(&key(rollout.id.0))?;
    save(context, rollout)
}

/// Releases the `auto` ports that neither the new stable release nor the one before it has, where the new one is known to run. Those
/// of the one before stay for now: its instances may still be draining. Going back further leases again.
fn release_ports<T: Tables>(context: &mut Context<'_, T>, deployment: &Deployment, rollout: &Rollout) -> Result<(), RuleError> {
    let mut gone = BTreeSet::new();
    for former in deployment.rollback_candidates() {
        gone.extend(port_leases::auto_ports(&context.release(former)?));
    }
    for kept in deployment.stable.iter().chain([&rollout.release]) {
        for port in port_leases::auto_ports(&context.release(kept)?) {
            gone.remove(&port);
        }
    }
    for (service, port) in &gone {
        for target in &rollout.sets.healthy {
            context.tables.delete::<PortLease>(&lease_key(target, &rollout.pipeline, service, port))?;
        }
    }
    Ok(())
}

/// No rollout changes a cordoned target: those that this one left out stay on what they are assigned.
fn retain_cordoned<T: Tables>(context: &Context<'_, T>, deployment: &mut Deployment, rollout: &Rollout) -> Result<(), RuleError> {
    for index in &rollout.sets.changed {
        deployment.release_retained(index);
    }
    let members = context.environment(&rollout.environment)?.members;
    for index in members - &rollout.sets.changed {
        let target: Option<Target> = context.tables.get(&key(index))?;
        if target.is_none_or(|target| target.cordoned.is_none()) {
            deployment.release_retained(index);
            continue;
        }
        let assigned = assigned_release(deployment, Some(rollout), index);
        if assigned.as_ref() == Some(&rollout.release) {
            deployment.release_retained(index);
        } else {
            deployment.retain(index, assigned);
        }
    }
    Ok(())
}
