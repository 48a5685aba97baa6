//! Starting a rollout: by a person, by a branch that deploys itself, or when what blocked it is gone.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use crate::{
    apply::context::Context,
    digest::Digest,
    event::{DataKey, EventKind, Subject},
    fleet::{PortLease, Target, port_leases::missing},
    ids::{EnvironmentName, ReleaseId, RolloutId},
    principal::Principal,
    rejection::{Rejection, RuleError},
    release::{Artifact, Release},
    rollout::{
        Before, BlockReason, Deployment, EndReason, Gate, OpenRollout, Purpose, Quarantined, RollbackReason, Rollout,
        RolloutState, Sets, StartReason,
        apply::{end, illegal, move_to, open, save},
        plan_input::{Planned, blocked, planned},
        reason::EventReason,
    },
    tables::{Tables, key},
    units::Millis,
};

/// From so many on, those quarantined releases are forgotten whose artifacts are gone: nobody can deploy them any more.
const QUARANTINED_LOOKED_THROUGH: usize = 50;

pub(crate) struct Request<'a> {
    pub environment: &'a EnvironmentName,
    pub release: &'a ReleaseId,
    pub purpose: Purpose,
    pub reason: StartReason,
    pub if_plan: Option<Digest>,
    pub by: Principal,
}

pub(crate) fn start<T: Tables>(context: &mut Context<'_, T>, request: Request<'_>) -> Result<Subject, RuleError> {
    let id = RolloutId(context.cluster.next_rollout);
    let planned = planned(context.tables, request.environment, request.release, request.purpose, id.0)?;
    let now = planned.digest(request.release);
    if request.if_plan.is_some_and(|expected| expected != now) {
        return Err(
            Rejection::PlanChanged { subject: Subject::Environment(request.environment.clone()), now: now.to_string() }.into()
        );
    }
    let release = context.release(request.release)?;
    let leases = if planned.blocked.is_none() { leases(context, &planned, &release)? } else { Vec::new() };
    // From here on nothing is rejected: a rollout that starts by itself must leave nothing half done.
    context.cluster.next_rollout += 1;
    let mut deployment = context.deployment(request.environment, &release.id.pipeline)?;
    let before = assigned_before(context, &deployment)?;
    if request.purpose == Purpose::Rollback {
        preempt(context, &mut deployment, id, request.release, &request.reason)?;
    }
    let Planned { plan, settings, stable, blocked, .. } = planned;
    let mut rollout = Rollout {
        id,
        pipeline: release.id.pipeline.clone(),
        environment: request.environment.clone(),
        release: request.release.clone(),
        stable,
        purpose: request.purpose,
        state: RolloutState::Blocked,
        blocked,
        paused: None,
        plan,
        settings,
        before,
        wave: 0,
        gate: Gate::Convergence,
        elapsed: Millis(0),
        sets: Sets::default(),
        verdicts: Vec::new(),
        failures: Vec::new(),
        preempted_by: None,
        start_reason: request.reason,
        rollback_reason: None,
        end_reason: None,
        by: request.by,
        created_at: context.at,
        started_at: None,
        ended_at: None,
        revision: context.index,
    };
    context.tables.put(&OpenRollout { rollout: id })?;
    let subject = Subject::Rollout(id);
    context.created.push(subject.clone());
    let event = context.event(subject, EventKind::RolloutCreated);
    event
        .data(DataKey::Pipeline, &rollout.pipeline)
        .data(DataKey::Environment, &rollout.environment)
        .data(DataKey::Release, &rollout.release)
        .data(DataKey::By, &rollout.by);
    take_place(context, &rollout, &mut deployment)?;
    if rollout.blocked.is_none() {
        begin(context, &mut rollout, &mut deployment, leases)?;
    } else {
        wait(context, &rollout, &mut deployment);
    }
    context.tables.put(&deployment)?;
    save(context, rollout)
}

/// The ports that the targets of a plan still need. Rejected where a target has none left.
fn leases<T: Tables>(context: &Context<'_, T>, planned: &Planned, release: &Release) -> Result<Vec<PortLease>, RuleError> {
    let mut leases = Vec::new();
    for index in planned.plan.waves.iter().flat_map(|wave| &wave.targets) {
        if let Some(target) = context.tables.get::<Target>(&key(index))? {
            leases.extend(missing(context.tables, &target, release)?);
        }
    }
    Ok(leases)
}

/// Leaves `Blocked`: the deployment is this rollout's from now on, and its targets have ports.
fn begin<T: Tables>(
    context: &mut Context<'_, T>,
    rollout: &mut Rollout,
    deployment: &mut Deployment,
    leases: Vec<PortLease>,
) -> Result<(), RuleError> {
    rollout.blocked = None;
    rollout.started_at = Some(context.at);
    deployment.rollout = Some(rollout.id);
    deployment.next = deployment.next.filter(|id| *id != rollout.id);
    for lease in leases {
        context.tables.put(&lease)?;
    }
    move_to(context, rollout, RolloutState::Deploying, None)
}

/// Ends whatever waits, since this rollout was asked for later: an older one must not follow it.
fn take_place<T: Tables>(context: &mut Context<'_, T>, rollout: &Rollout, deployment: &mut Deployment) -> Result<(), RuleError> {
    let Some(waiting) = deployment.next.take() else { return Ok(()) };
    let waiting = context.rollout(waiting)?;
    if !waiting.state.is_end() {
        end(context, waiting, RolloutState::Canceled, Some(EndReason::Superseded { by: rollout.id }))?;
        *deployment = context.deployment(&rollout.environment, &rollout.pipeline)?;
    }
    Ok(())
}

/// Waits behind what blocks it.
fn wait<T: Tables>(context: &mut Context<'_, T>, rollout: &Rollout, deployment: &mut Deployment) {
    deployment.next = Some(rollout.id);
    let event = context.event(Subject::Rollout(rollout.id), EventKind::RolloutBlocked);
    if let Some(blocked) = &rollout.blocked {
        blocked.describe(event);
    }
}

/// What blocked it is gone: it is planned again, for what is true now.
pub(crate) fn unblock<T: Tables>(context: &mut Context<'_, T>, id: RolloutId) -> Result<Subject, RuleError> {
    let mut rollout = open(context, id, "begin")?;
    if rollout.state != RolloutState::Blocked {
        return Err(illegal(&rollout, "begin again"));
    }
    let mut deployment = context.deployment(&rollout.environment, &rollout.pipeline)?;
    let environment = context.environment(&rollout.environment)?;
    if let Some(still) = blocked(&environment, Some(&deployment), rollout.purpose) {
        return Err(match still {
            BlockReason::Rollout(holder) => {
                Rejection::Held { subject: Subject::Rollout(id), holder: Subject::Rollout(holder) }.into()
            }
            BlockReason::Frozen(_) => Rejection::Frozen(Subject::Environment(rollout.environment)).into(),
        });
    }
    let release = context.release(&rollout.release)?;
    let now = planned(context.tables, &rollout.environment, &rollout.release, rollout.purpose, id.0);
    let now = now.and_then(|now| leases(context, &now, &release).map(|leases| (now, leases)));
    let (now, leases) = match now {
        Ok(now) => now,
        // It can never begin, such as a release that was quarantined meanwhile: it ends instead of waiting for ever.
        Err(RuleError::Rejected(rejection)) => {
            return end(context, rollout, RolloutState::Canceled, Some(EndReason::Refused(Box::new(rejection))));
        }
        Err(error) => return Err(error),
    };
    rollout.plan = now.plan;
    rollout.settings = now.settings;
    rollout.stable = now.stable;
    rollout.before = assigned_before(context, &deployment)?;
    begin(context, &mut rollout, &mut deployment, leases)?;
    context.tables.put(&deployment)?;
    save(context, rollout)
}

/// The targets that are assigned something else than the stable release: those that the open rollout has moved.
fn assigned_before<T: Tables>(context: &Context<'_, T>, deployment: &Deployment) -> Result<Before, RuleError> {
    let Some(open) = deployment.rollout else { return Ok(Vec::new()) };
    let rollout = context.rollout(open)?;
    let mut assigned: BTreeMap<Option<ReleaseId>, RoaringBitmap> = BTreeMap::new();
    let moved = &rollout.sets.changed - &rollout.sets.reverted;
    for (release, targets) in &rollout.before {
        *assigned.entry(release.clone()).or_default() |= &(targets - &rollout.sets.changed) - &rollout.sets.reverted;
    }
    *assigned.entry(Some(rollout.release.clone())).or_default() |= moved;
    assigned.retain(|release, targets| *release != deployment.stable && !targets.is_empty());
    Ok(assigned.into_iter().collect())
}

/// A rollback asked for by a person takes the place of what is at work and of what waits. The releases that it goes back from
/// are quarantined.
fn preempt<T: Tables>(
    context: &mut Context<'_, T>,
    deployment: &mut Deployment,
    by: RolloutId,
    to: &ReleaseId,
    reason: &StartReason,
) -> Result<(), RuleError> {
    let text = match reason {
        StartReason::Requested(text) => text.clone(),
        StartReason::Branch(_) => None,
    };
    let mut gone_back_from: Vec<(ReleaseId, RolloutId)> = Vec::new();
    for id in [deployment.rollout, deployment.next].into_iter().flatten() {
        let mut open = context.rollout(id)?;
        if open.state.is_end() {
            continue;
        }
        if open.state != RolloutState::Blocked && open.release != *to {
            gone_back_from.push((open.release.clone(), id));
        }
        open.preempted_by = Some(by);
        end(context, open, RolloutState::Preempted, Some(EndReason::Preempted { by, text: text.clone() }))?;
    }
    *deployment = context.deployment(&deployment.environment, &deployment.pipeline)?;
    gone_back_from.extend(deployment.stable.clone().filter(|stable| stable != to).map(|stable| (stable, by)));
    for (release, rollout) in gone_back_from {
        let reason = RollbackReason::Requested { by: context.principal.clone(), text: text.clone() };
        quarantine(context, deployment, &release, rollout, reason)?;
    }
    Ok(())
}

/// Marks `release` as rolled back in this environment, until a person clears it.
pub(crate) fn quarantine<T: Tables>(
    context: &mut Context<'_, T>,
    deployment: &mut Deployment,
    release: &ReleaseId,
    rollout: RolloutId,
    reason: RollbackReason,
) -> Result<(), RuleError> {
    if deployment.quarantined.iter().any(|kept| kept.release == *release) {
        return Ok(());
    }
    if deployment.quarantined.len() >= QUARANTINED_LOOKED_THROUGH {
        let mut kept = Vec::new();
        for quarantined in std::mem::take(&mut deployment.quarantined) {
            let artifact = context.release(&quarantined.release)?.artifact;
            let artifact: Option<Artifact> = context.tables.get(&key(artifact.hex().as_str()))?;
            if artifact.is_some_and(|artifact| artifact.deleted_at.is_none()) {
                kept.push(quarantined);
            }
        }
        deployment.quarantined = kept;
    }
    let event = context.event(Subject::Environment(deployment.environment.clone()), EventKind::EnvironmentReleaseQuarantined);
    event.data(DataKey::Release, release).data(DataKey::Rollout, rollout);
    reason.describe(event);
    deployment.quarantined.push(Quarantined { release: release.clone(), rollout, reason, at: context.at });
    Ok(())
}

/// Starts the rollouts of the environments that deploy one of `branches` by themselves. One that cannot start leaves an event, and stops no other.
pub(crate) fn start_automatically<T: Tables>(
    context: &mut Context<'_, T>,
    release: &Release,
    branches: &[String],
    by: &Principal,
) -> Result<(), RuleError> {
    for (environment, deploy) in &release.file.deploy {
        let Some(branch) = branches.iter().find(|branch| deploy.deploys_by_itself(branch)) else { continue };
        let reason = StartReason::Branch(branch.clone());
        let newer = newest_there(context, environment, release)?;
        let started = match newer {
            Some(same) if same == release.id => continue,
            Some(newer) => Err(RuleError::Rejected(Rejection::Held {
                subject: Subject::Environment(environment.clone()),
                holder: Subject::Release(newer),
            })),
            None => {
                let (release, purpose, by) = (&release.id, Purpose::Deploy, by.clone());
                start(context, Request { environment, release, purpose, reason, if_plan: None, by })
            }
        };
        match started {
            Ok(_) => {}
            Err(RuleError::Rejected(rejection)) => {
                let note = format!("{rejection}: {}", rejection.hint());
                let event = context.event(Subject::Release(release.id.clone()), EventKind::ReleaseDeploySkipped);
                event.data(DataKey::Environment, environment).data(DataKey::Code, rejection.code()).note(note);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The release that the environment runs or moves to, where it is of the same or a later build: an older build that ends later
/// must not take its place.
fn newest_there<T: Tables>(
    context: &Context<'_, T>,
    environment: &EnvironmentName,
    release: &Release,
) -> Result<Option<ReleaseId>, RuleError> {
    let deployment = context.deployment(environment, &release.id.pipeline)?;
    let mut candidates: Vec<ReleaseId> = deployment.stable.into_iter().collect();
    for id in [deployment.rollout, deployment.next].into_iter().flatten() {
        candidates.push(context.rollout(id)?.release);
    }
    let mut newest: Option<Release> = None;
    for candidate in candidates {
        let candidate = context.release(&candidate)?;
        if candidate.build >= newest.as_ref().map_or(release.build, |newest| newest.build) {
            newest = Some(candidate);
        }
    }
    Ok(newest.map(|newest| newest.id))
}
