//! The fleet: servers that join, who is connected, and what the targets say.

use super::{
    context::{Context, invalid},
    environment::check_labels,
    rollout,
};
use crate::model::{
    build::Runner,
    command::FleetAction,
    event::Subject,
    fleet::{Environment, Presence, Target, TargetByName, TargetFacts},
    observation::Observation,
    ports_kept,
    rejection::RuleError,
    rollout::Deployment,
    tables::{SCAN_RECORDS_MAX, Scan, Tables, key},
};

/// The most reports in one batch.
const REPORTS_MAX: usize = 10_000;

pub(super) fn apply<T: Tables>(context: &mut Context<'_, T>, action: &FleetAction) -> Result<Subject, RuleError> {
    match action {
        FleetAction::Join { facts } => join(context, facts),
        FleetAction::Cordon { name, why } => cordon(context, name, Some(why.clone())),
        FleetAction::Uncordon { name } => cordon(context, name, None),
        FleetAction::Presence { server, connected } => {
            let before = context.tables.get::<Presence>(&key(*server))?.unwrap_or_default().connected;
            context.tables.put(&Presence { server: *server, connected: connected.clone() })?;
            let (came, went) = ((connected - &before).len(), (&before - connected).len());
            context.event(Subject::Cluster, "fleet.presence").data("connected", came).data("disconnected", went);
            Ok(Subject::Cluster)
        }
        FleetAction::Report { reports } => report(context, reports),
        FleetAction::RegisterRunner { name, resources } => {
            let subject = Subject::Runner(name.clone());
            let kept: Option<Runner> = context.tables.get(&key(name.as_str()))?;
            if kept.as_ref().is_none_or(|kept| kept.resources != *resources) {
                let registered_at = kept.map_or(context.at, |kept| kept.registered_at);
                context.tables.put(&Runner { name: name.clone(), resources: *resources, registered_at })?;
                context.event(subject.clone(), "runner.registered");
            }
            Ok(subject)
        }
    }
}

/// A server joins, or says something new of itself. It belongs at once to every environment that selects it.
fn join<T: Tables>(context: &mut Context<'_, T>, facts: &TargetFacts) -> Result<Subject, RuleError> {
    check_labels(&facts.labels)?;
    for (what, text) in [("region", &facts.region), ("zone", &facts.zone)] {
        if text.is_empty() || text.len() > 100 || text.chars().any(char::is_control) {
            return Err(invalid(what, "it must have between 1 and 100 printable bytes"));
        }
    }
    if facts.ports.first < 1024 || facts.ports.pairs() == 0 {
        return Err(invalid("ports", "the range must begin at 1024 or above and hold at least two ports"));
    }
    let subject = Subject::Target(facts.name.clone());
    let known: Option<TargetByName> = context.tables.get(&key(facts.name.as_str()))?;
    let target = match known {
        Some(known) => {
            let kept: Option<Target> = context.tables.get(&key(known.index))?;
            let Some(kept) = kept else { return Err(invalid("target", "its name is known, its record is not")) };
            if kept.facts == *facts {
                return Ok(subject);
            }
            Target { facts: facts.clone(), revision: context.index, ..kept }
        }
        None => {
            let index = context.cluster.next_target;
            context.cluster.next_target += 1;
            context.tables.put(&TargetByName { name: facts.name.clone(), index })?;
            context.created.push(subject.clone());
            Target { index, facts: facts.clone(), cordoned: None, joined_at: context.at, revision: context.index }
        }
    };
    context.tables.put(&target)?;
    context.event(subject.clone(), "target.joined").data("zone", &facts.zone).data("region", &facts.region);
    for mut environment in context.tables.scan::<Environment>(&Scan::all(), SCAN_RECORDS_MAX)? {
        let was_member = environment.members.contains(target.index);
        let is_member = environment.selects(&facts.labels);
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
        }
    }
    Ok(subject)
}

/// A target that joins an environment gets ports for everything that is deployed there.
fn keep_ports<T: Tables>(context: &mut Context<'_, T>, environment: &Environment, target: &Target) -> Result<(), RuleError> {
    let in_environment = Scan::prefix(key(environment.name.as_str()));
    for deployment in context.tables.scan::<Deployment>(&in_environment, SCAN_RECORDS_MAX)? {
        let Some(stable) = &deployment.stable else { continue };
        let release = context.release(stable)?;
        ports_kept::lease(context.tables, target, &release)?;
    }
    Ok(())
}

fn cordon<T: Tables>(
    context: &mut Context<'_, T>,
    name: &crate::model::ids::TargetName,
    why: Option<String>,
) -> Result<Subject, RuleError> {
    let mut target = context.target(name)?;
    let subject = Subject::Target(name.clone());
    context.check_revision(&subject, target.revision)?;
    match &why {
        Some(why) => context.event(subject.clone(), "target.cordoned").note(why),
        None => context.event(subject.clone(), "target.uncordoned"),
    };
    target.cordoned = why;
    target.revision = context.index;
    context.tables.put(&target)?;
    Ok(subject)
}

/// Keeps what targets said, and tells the open rollouts.
fn report<T: Tables>(
    context: &mut Context<'_, T>,
    reports: &[(u32, crate::model::observation::Report)],
) -> Result<Subject, RuleError> {
    if reports.len() > REPORTS_MAX {
        return Err(invalid("reports", format!("one batch holds at most {REPORTS_MAX}")));
    }
    let mut progress = rollout::Progress::default();
    for (target, report) in reports {
        let observation = Observation { target: *target, report: report.clone(), at: context.at };
        context.tables.put(&observation)?;
        progress.observe(context, &observation)?;
    }
    progress.save(context)?;
    context.event(Subject::Cluster, "fleet.reported").data("targets", reports.len());
    Ok(Subject::Cluster)
}
