//! The fleet: targets that join and leave, who is connected, and what they report.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use crate::{
    apply::context::{Context, invalid},
    fleet::environment_apply::check_labels,
    rollout::{apply as rollout_apply, plan_input::connected},
};
use crate::{
    build::Runner,
    command::FleetAction,
    event::{DataKey, EventKind, Subject},
    fleet::{
        Environment, LostTargets, PortLease, Presence, Target, TargetByAddress, TargetByName, TargetInfo,
        observation::{Observation, TargetReports, observation_key},
        port_leases,
    },
    ids::{EnvironmentName, PipelineName, TargetName},
    pipeline::Pipeline,
    rejection::{Rejection, RuleError},
    rollout::Deployment,
    tables::{Key, Record, SCAN_RECORDS_MAX, Scan, Tables, key},
};

/// The most reports in one batch.
const REPORTS_MAX: usize = 10_000;

pub(crate) fn apply<T: Tables>(context: &mut Context<'_, T>, action: &FleetAction) -> Result<Subject, RuleError> {
    match action {
        FleetAction::Join { info } => join(context, info),
        FleetAction::Cordon { name, why } => cordon(context, name, Some(why.clone())),
        FleetAction::Uncordon { name } => cordon(context, name, None),
        FleetAction::Remove { name } => remove(context, name),
        FleetAction::DeclareLost { targets } => declare_lost(context, targets),
        FleetAction::Presence { server, connected } => presence(context, *server, connected),
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

/// Records who is connected to a server. Whoever is connected is not lost.
fn presence<T: Tables>(context: &mut Context<'_, T>, server: u64, connected: &RoaringBitmap) -> Result<Subject, RuleError> {
    let before = context.tables.get::<Presence>(&key(server))?.unwrap_or_default().connected;
    context.tables.put(&Presence { server, connected: connected.clone() })?;
    let (came, went) = ((connected - &before).len(), (&before - connected).len());
    context
        .event(Subject::Cluster, EventKind::FleetPresenceChanged)
        .data(DataKey::Connected, came)
        .data(DataKey::Disconnected, went);
    set_lost(context, |lost| lost - connected)?;
    Ok(Subject::Cluster)
}

fn declare_lost<T: Tables>(context: &mut Context<'_, T>, targets: &RoaringBitmap) -> Result<Subject, RuleError> {
    let mut gone = targets - connected(context.tables)?;
    for index in gone.clone() {
        if context.tables.get::<Target>(&key(index))?.is_none() {
            gone.remove(index);
        }
    }
    set_lost(context, |lost| lost | gone)?;
    Ok(Subject::Cluster)
}

/// Changes who is lost, with an event where that differs.
fn set_lost<T: Tables>(
    context: &mut Context<'_, T>,
    change: impl FnOnce(&RoaringBitmap) -> RoaringBitmap,
) -> Result<(), RuleError> {
    let before = context.tables.get::<LostTargets>(&Key::all())?.unwrap_or_default().targets;
    let targets = change(&before);
    if targets != before {
        let (lost, found) = ((&targets - &before).len(), (&before - &targets).len());
        context.event(Subject::Cluster, EventKind::FleetLossChanged).data(DataKey::Lost, lost).data(DataKey::Found, found);
        context.tables.put(&LostTargets { targets })?;
    }
    Ok(())
}

/// Forgets a target, with its ports, its reports and its membership. Its number is never used again.
fn remove<T: Tables>(context: &mut Context<'_, T>, name: &TargetName) -> Result<Subject, RuleError> {
    let target = context.target(name)?;
    let subject = Subject::Target(name.clone());
    context.check_revision(&subject, target.revision)?;
    let lost = context.tables.get::<LostTargets>(&Key::all())?.unwrap_or_default();
    if target.cordoned.is_none() && !lost.targets.contains(target.index) {
        let by = "it is neither lost nor cordoned".to_owned();
        return Err(Rejection::Needed { subject, by }.into());
    }
    leave_environments(context, &target)?;
    for lease in context.tables.scan::<PortLease>(&Scan::prefix(key(target.index)), SCAN_RECORDS_MAX)? {
        context.tables.delete::<PortLease>(&lease.key())?;
    }
    for pipeline in context.tables.scan::<Pipeline>(&Scan::all(), SCAN_RECORDS_MAX)? {
        context.tables.delete::<Observation>(&observation_key(&pipeline.name, target.index))?;
    }
    for mut presence in context.tables.scan::<Presence>(&Scan::all(), SCAN_RECORDS_MAX)? {
        if presence.connected.remove(target.index) {
            context.tables.put(&presence)?;
        }
    }
    set_lost(context, |lost| lost - RoaringBitmap::from_iter([target.index]))?;
    context.tables.delete::<TargetByAddress>(&by_address(&target).key())?;
    context.tables.delete::<TargetByName>(&key(name.as_str()))?;
    context.tables.delete::<Target>(&key(target.index))?;
    context.event(subject.clone(), EventKind::TargetRemoved);
    Ok(subject)
}

fn leave_environments<T: Tables>(context: &mut Context<'_, T>, target: &Target) -> Result<(), RuleError> {
    for mut environment in context.tables.scan::<Environment>(&Scan::all(), SCAN_RECORDS_MAX)? {
        let in_environment = Scan::prefix(key(environment.name.as_str()));
        for mut deployment in context.tables.scan::<Deployment>(&in_environment, SCAN_RECORDS_MAX)? {
            if deployment.release_retained(target.index) {
                context.tables.put(&deployment)?;
            }
        }
        if environment.members.remove(target.index) {
            environment.revision = context.index;
            context.tables.put(&environment)?;
        }
    }
    Ok(())
}

fn by_address(target: &Target) -> TargetByAddress {
    TargetByAddress { address: target.info.address, index: target.index }
}

/// Two targets whose ports overlap at one address would get each other's traffic. One that is lost may have had its address for long
/// enough: it keeps its number, and gateways do not route to it.
fn check_address<T: Tables>(context: &Context<'_, T>, info: &TargetInfo) -> Result<(), RuleError> {
    let lost = context.tables.get::<LostTargets>(&Key::all())?.unwrap_or_default().targets;
    let at_address = Scan::prefix(key(info.address.to_string().as_str()));
    for other in context.tables.scan::<TargetByAddress>(&at_address, SCAN_RECORDS_MAX)? {
        let Some(other) = context.tables.get::<Target>(&key(other.index))? else { continue };
        if other.info.name == info.name || lost.contains(other.index) || !other.info.ports.overlaps(info.ports) {
            continue;
        }
        let (first, last) = (other.info.ports.first, other.info.ports.last);
        let holder = Subject::Target(other.info.name);
        return Err(Rejection::AddressInUse { address: info.address, first, last, holder }.into());
    }
    Ok(())
}

/// A target joins, or its agent reports other properties. It belongs at once to every environment that selects it.
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
    check_address(context, info)?;
    let subject = Subject::Target(info.name.clone());
    let known: Option<TargetByName> = context.tables.get(&key(info.name.as_str()))?;
    let target = match known {
        Some(known) => {
            let kept: Option<Target> = context.tables.get(&key(known.index))?;
            let Some(kept) = kept else { return Err(invalid("target", "its name is known, its record is not")) };
            if kept.info == *info {
                return Ok(subject);
            }
            context.tables.delete::<TargetByAddress>(&by_address(&kept).key())?;
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
    context.tables.put(&by_address(&target))?;
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
            lease_ports(context, &environment, &target)?;
            joined.push(environment.name);
        }
    }
    check_not_shared(context, &joined)?;
    Ok(subject)
}

/// Only one environment can assign a pipeline's release to a target: it may not join two that both have the pipeline.
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

/// Leases a target that joins an environment the ports of everything that is deployed there.
fn lease_ports<T: Tables>(context: &mut Context<'_, T>, environment: &Environment, target: &Target) -> Result<(), RuleError> {
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

fn cordon<T: Tables>(context: &mut Context<'_, T>, name: &TargetName, why: Option<String>) -> Result<Subject, RuleError> {
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

/// A target that is no longer cordoned follows its environments, and has the ports for it.
fn follow_again<T: Tables>(context: &mut Context<'_, T>, target: &Target) -> Result<(), RuleError> {
    for environment in context.tables.scan::<Environment>(&Scan::all(), SCAN_RECORDS_MAX)? {
        let in_environment = Scan::prefix(key(environment.name.as_str()));
        for mut deployment in context.tables.scan::<Deployment>(&in_environment, SCAN_RECORDS_MAX)? {
            if deployment.release_retained(target.index) {
                context.tables.put(&deployment)?;
            }
        }
        if environment.members.contains(target.index) {
            lease_ports(context, &environment, target)?;
        }
    }
    Ok(())
}

/// Keeps what is newer than what is known of its agent, and counts it for the open rollouts. A target that was removed meanwhile is left
/// out.
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
        if context.tables.get::<Target>(&key(*target))?.is_none() {
            continue;
        }
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
