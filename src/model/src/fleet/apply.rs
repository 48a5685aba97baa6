//! The fleet: servers that join, who is connected, and what the targets say.

use std::collections::BTreeMap;

use crate::{
    apply::context::{Context, invalid},
    fleet::environment_apply::check_labels,
    rollout::apply as rollout_apply,
};
use crate::{
    build::Runner,
    command::FleetAction,
    event::{DataKey, EventKind, Subject},
    fleet::{
        Environment, Presence, Target, TargetByName, TargetInfo,
        observation::{Observation, TargetReports, observation_key},
        port_leases,
    },
    ids::{EnvironmentName, PipelineName},
    rejection::RuleError,
    rollout::Deployment,
    tables::{SCAN_RECORDS_MAX, Scan, Tables, key},
};

/// The most reports in one batch.
const REPORTS_MAX: usize = 10_000;

pub(crate) fn apply<T: Tables>(context: &mut Context<'_, T>, action: &FleetAction) -> Result<Subject, RuleError> {
    match action {
        FleetAction::Join { info } => join(context, info),
        FleetAction::Cordon { name, why } => cordon(context, name, Some(why.clone())),
        FleetAction::Uncordon { name } => cordon(context, name, None),
        FleetAction::Presence { server, connected } => {
            let before = context.tables.get::<Presence>(&key(*server))?.unwrap_or_default().connected;
            context.tables.put(&Presence { server: *server, connected: connected.clone() })?;
            let (came, went) = ((connected - &before).len(), (&before - connected).len());
            context
                .event(Subject::Cluster, EventKind::FleetPresenceChanged)
                .data(DataKey::Connected, came)
                .data(DataKey::Disconnected, went);
            Ok(Subject::Cluster)
        }
        FleetAction::Report { targets } => report(context, targets),
        FleetAction::RegisterRunner { name, resources } => {
            let subject = Subject::Runner(name.clone());
            let kept: Option<Runner> = context.tables.get(&key(name.as_str()))?;
            if kept.as_ref().is_none_or(|kept| kept.resources != *resources) {
                let registered_at = kept.map_or(context.at, |kept| kept.registered_at);
                context.tables.put(&Runner { name: name.clone(), resources: *resources, registered_at })?;
                context.event(subject.clone(), EventKind::RunnerRegistered);
            }
            Ok(subject)
        }
    }
}

/// A server joins, or says something new of itself. It belongs at once to every environment that selects it.
fn join<T: Tables>(context: &mut Context<'_, T>, info: &TargetInfo) -> Result<Subject, RuleError> {
    check_labels(&info.labels)?;
    for (what, text) in [("region", &info.region), ("zone", &info.zone)] {
        if text.is_empty() || text.len() > 100 || text.chars().any(char::is_control) {
            return Err(invalid(what, "it must have between 1 and 100 printable bytes"));
        }
    }
    if info.ports.first < 1024 || info.ports.pairs() == 0 {
        return Err(invalid("ports", "the range must begin at 1024 or above and hold at least two ports"));
    }
    let subject = Subject::Target(info.name.clone());
    let known: Option<TargetByName> = context.tables.get(&key(info.name.as_str()))?;
    let target = match known {
        Some(known) => {
            let kept: Option<Target> = context.tables.get(&key(known.index))?;
            let Some(kept) = kept else { return Err(invalid("target", "its name is known, its record is not")) };
            if kept.info == *info {
                return Ok(subject);
            }
            Target { info: info.clone(), revision: context.index, ..kept }
        }
        None => {
            let index = context.cluster.next_target;
            context.cluster.next_target += 1;
            context.tables.put(&TargetByName { name: info.name.clone(), index })?;
            context.created.push(subject.clone());
            Target { index, info: info.clone(), cordoned: None, joined_at: context.at, revision: context.index }
        }
    };
    context.tables.put(&target)?;
    context.event(subject.clone(), EventKind::TargetJoined).data(DataKey::Zone, &info.zone).data(DataKey::Region, &info.region);
    let mut joined = Vec::new();
    for mut environment in context.tables.scan::<Environment>(&Scan::all(), SCAN_RECORDS_MAX)? {
        let was_member = environment.members.contains(target.index);
        let is_member = environment.selects(&info.labels);
        if is_member != was_member {
            if is_member {
                environment.members.insert(target.index)
            } else {
                environment.members.remove(target.index)
            };
            environment.revision = context.index;
            context.tables.put(&environment)?;
        }
        if is_member {
            keep_ports(context, &environment, &target)?;
            joined.push(environment.name);
        }
    }
    check_not_shared(context, &joined)?;
    Ok(subject)
}

/// Only one environment could say what of a pipeline runs on a target, so that it may not join two that both have the pipeline.
fn check_not_shared<T: Tables>(context: &Context<'_, T>, environments: &[EnvironmentName]) -> Result<(), RuleError> {
    let mut seen: BTreeMap<PipelineName, &EnvironmentName> = BTreeMap::new();
    for environment in environments {
        let in_environment = Scan::prefix(key(environment.as_str()));
        for deployment in context.tables.scan::<Deployment>(&in_environment, SCAN_RECORDS_MAX)? {
            if !deployment.is_in_use() {
                continue;
            }
            if let Some(other) = seen.insert(deployment.pipeline.clone(), environment) {
                let why = format!("{other} and {environment} would both have it, and both run {}", deployment.pipeline);
                return Err(invalid("labels", why));
            }
        }
    }
    Ok(())
}

/// A target that joins an environment gets ports for everything that is deployed there.
fn keep_ports<T: Tables>(context: &mut Context<'_, T>, environment: &Environment, target: &Target) -> Result<(), RuleError> {
    let in_environment = Scan::prefix(key(environment.name.as_str()));
    for deployment in context.tables.scan::<Deployment>(&in_environment, SCAN_RECORDS_MAX)? {
        // What a rollout moves to becomes the stable release without planning this target.
        let rollout = deployment.rollout.map(|id| context.rollout(id)).transpose()?;
        for release in deployment.stable.into_iter().chain(rollout.map(|rollout| rollout.release)) {
            let release = context.release(&release)?;
            port_leases::lease(context.tables, target, &release)?;
        }
    }
    Ok(())
}

fn cordon<T: Tables>(
    context: &mut Context<'_, T>,
    name: &crate::ids::TargetName,
    why: Option<String>,
) -> Result<Subject, RuleError> {
    let mut target = context.target(name)?;
    let subject = Subject::Target(name.clone());
    context.check_revision(&subject, target.revision)?;
    match &why {
        Some(why) => context.event(subject.clone(), EventKind::TargetCordoned).note(why),
        None => context.event(subject.clone(), EventKind::TargetUncordoned),
    };
    let freed = why.is_none();
    target.cordoned = why;
    target.revision = context.index;
    context.tables.put(&target)?;
    if freed {
        follow_again(context, &target)?;
    }
    Ok(subject)
}

/// A target that is no longer cordoned runs what its environments say, and has the ports for it.
fn follow_again<T: Tables>(context: &mut Context<'_, T>, target: &Target) -> Result<(), RuleError> {
    for environment in context.tables.scan::<Environment>(&Scan::all(), SCAN_RECORDS_MAX)? {
        let in_environment = Scan::prefix(key(environment.name.as_str()));
        for mut deployment in context.tables.scan::<Deployment>(&in_environment, SCAN_RECORDS_MAX)? {
            if deployment.release_hold(target.index) {
                context.tables.put(&deployment)?;
            }
        }
        if environment.members.contains(target.index) {
            keep_ports(context, &environment, target)?;
        }
    }
    Ok(())
}

/// Keeps what is newer than what is known of its agent, and tells the open rollouts.
fn report<T: Tables>(context: &mut Context<'_, T>, targets: &[TargetReports]) -> Result<Subject, RuleError> {
    if targets.iter().map(|target| target.reports.len()).sum::<usize>() > REPORTS_MAX {
        return Err(invalid("reports", format!("one batch holds at most {REPORTS_MAX}")));
    }
    if let Some(unknown) = targets.iter().find(|target| target.target >= context.cluster.next_target) {
        return Err(invalid("reports", format!("there is no target {}", unknown.target)));
    }
    let mut progress = rollout_apply::Progress::default();
    let mut newer = 0;
    for TargetReports { target, origin, reports } in targets {
        for report in reports {
            let known: Option<Observation> = context.tables.get(&observation_key(&report.pipeline, *target))?;
            if known.is_some_and(|known| !origin.is_newer_than(&known.origin)) {
                continue;
            }
            let observation = Observation { target: *target, report: report.clone(), origin: origin.clone(), at: context.at };
            context.tables.put(&observation)?;
            progress.observe(context, &observation)?;
            newer += 1;
        }
    }
    progress.save(context)?;
    let event = context.event(Subject::Cluster, EventKind::FleetReported);
    event.data(DataKey::Targets, targets.len()).data(DataKey::Reports, newer);
    Ok(Subject::Cluster)
}
