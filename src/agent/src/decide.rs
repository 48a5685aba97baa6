//! The rules of converging: what is desired, recorded and observed gives the next step, and how far things have come. Pure: no clock, no
//! I/O. Must not know how steps are taken.
//!
//! One step at a time: whoever takes it asks again afterwards. The order in which the rules stand is their priority.
//!
//! A release starts as a whole. Its services that start beside come first, then, when all of those are proven, those that start in
//! place; when every service is proven one switch makes the new instances current and the others leave. Should a new instance fail
//! before that, those that started beside leave again and what was current stays.
//!
//! - `view`: what a decision depends on
//! - `step`: what it may be
//! - `departure`: how instances leave
//! - `status`: whether instances are proven, and what is reported of them

mod departure;
mod status;
mod step;
mod view;

use std::collections::{BTreeMap, BTreeSet};

pub use self::view::UNHEALTHY_AFTER_FAILURES;
pub(super) use self::{
    departure::{departure_of, is_confirmed, unconfirmed},
    status::{instance_state, is_serving, progress},
    step::{Fault, Next, Step},
    view::{Desired, Observed, Process, View},
};
use self::{
    departure::{departures, must_run, returns},
    status::{fault, is_ready},
    view::{Alarm, starts_beside},
};
use super::{
    journal::{Instance, Role},
    options::{Timing, backoff_ms},
};
use swell_model::{
    digest::Digest,
    ids::{PortName, ServiceName},
    rollout::assignment::{DesiredRelease, DesiredService},
};

/// So often in a row clearing an instance away must have failed until others no longer count on its end.
const STUCK_AFTER_FAILED_STEPS: u32 = 3;

/// Decides what to do next.
pub(super) fn next(view: &View<'_>) -> Next {
    let mut alarm = Alarm::new(view);
    let step = departures(view, &mut alarm)
        .or_else(|| match view.desired {
            Desired::Unknown => None,
            Desired::Nothing => {
                let is_over =
                    view.journal.instances.is_empty() && (view.journal.active.is_some() || view.journal.attempt.is_some());
                view.staying().next().map(|instance| Step::Leave(instance.id)).or(is_over.then_some(Step::Retire))
            }
            Desired::Release(release) => converge(view, release, &mut alarm),
        })
        .or_else(|| restarts(view, &mut alarm))
        .or_else(|| removals(view));
    step.map_or(Next::Wait(alarm.at), Next::Do)
}

fn converge(view: &View<'_>, release: &DesiredRelease, alarm: &mut Alarm) -> Option<Step> {
    let is_desired =
        |instance: &Instance| instance.release == release.release && release.services.contains_key(&instance.service);
    if let Some(instance) = view.leaving().find(|instance| returns(view, instance)) {
        return Some(Step::Return(instance.id));
    }
    // Of a release that is desired no more. In place the next one takes its place.
    let stale = |instance: &&Instance| instance.role == Role::New && !is_desired(instance) && starts_beside(&instance.settings);
    if let Some(instance) = view.staying().find(stale) {
        return Some(Step::Leave(instance.id));
    }
    for instance in view.staying().filter(|instance| instance.role == Role::New && is_desired(instance)) {
        if let Some(fault) = fault(view, instance, alarm) {
            if view.journal.attempt.as_ref().is_none_or(|attempt| attempt.run != Some(instance.run)) {
                return Some(Step::Fail { id: instance.id, fault });
            }
            // In place and reported already: stopped, so that it is started again.
            if let Process::Up { stopping: false, .. } = view.process(instance) {
                return Some(Step::Stop(instance.id));
            }
        }
    }
    let candidate = |service: &ServiceName| view.staying().find(|instance| instance.service == *service && is_desired(instance));
    let mut ready = |service: &ServiceName| candidate(service).is_some_and(|instance| is_ready(view, instance, alarm));
    let ready: BTreeSet<&ServiceName> = release.services.keys().filter(|service| ready(service)).collect();
    let is_complete = !release.services.is_empty() || view.on_disk.contains(&release.artifact);
    if ready.len() == release.services.len() && is_complete {
        let is_switched = view.staying().all(|instance| instance.role == Role::Current && is_desired(instance));
        let is_recorded = view.journal.active.as_ref().is_some_and(|active| active.release == release.release);
        return (!is_switched || !is_recorded).then_some(Step::Switch);
    }
    let missing = || release.services.iter().filter(|(service, _)| candidate(service).is_none());
    if (missing().next().is_none() && is_complete) || !alarm.is_due(view.hold_until) {
        return None;
    }
    if !view.on_disk.contains(&release.artifact) {
        return (!view.fetching).then_some(Step::Fetch);
    }
    for (service, settings) in missing().filter(|(_, settings)| starts_beside(settings)) {
        match free_ports(view, service, settings) {
            Ok(Some(ports)) => return Some(Step::Start { service: service.clone(), ports }),
            // Those that leave have the ports.
            Ok(None) => {
                if let Some(blocked) = blocked(view, service) {
                    return Some(blocked);
                }
            }
            Err(port) => return Some(Step::NoPort { service: service.clone(), port }),
        }
    }
    let beside_is_ready = release.services.iter().all(|(service, settings)| !starts_beside(settings) || ready.contains(service));
    for (service, settings) in missing().filter(|(_, settings)| !starts_beside(settings) && beside_is_ready) {
        if let Some(old) = view.staying().find(|instance| instance.service == *service) {
            return Some(Step::Leave(old.id));
        }
        if let Some(blocked) = blocked(view, service) {
            return Some(blocked);
        }
        if view.journal.instances.iter().any(|instance| instance.service == *service) {
            continue;
        }
        match free_ports(view, service, settings) {
            Ok(Some(ports)) => return Some(Step::Start { service: service.clone(), ports }),
            Ok(None) => {}
            Err(port) => return Some(Step::NoPort { service: service.clone(), port }),
        }
    }
    None
}

/// Says that the service waits for instances none of which could be cleared away. Otherwise it need not wait for long.
fn blocked(view: &View<'_>, service: &ServiceName) -> Option<Step> {
    let mut leaving = view.leaving().filter(|instance| instance.service == *service);
    let by = leaving.clone().next()?.id;
    let is_blocked = leaving.all(|instance| view.observed(instance).failed_steps >= STUCK_AFTER_FAILED_STEPS);
    is_blocked.then(|| Step::Blocked { service: service.clone(), by })
}

/// For each port the number that no instance of the service has; `None` while all are in use.
///
/// # Errors
/// The port that has no number at all on this target.
fn free_ports(
    view: &View<'_>,
    service: &ServiceName,
    settings: &DesiredService,
) -> Result<Option<BTreeMap<PortName, u16>>, PortName> {
    let mut ports = BTreeMap::new();
    for (port, numbers) in &settings.ports {
        let siblings = || view.journal.instances.iter().filter(|instance| instance.service == *service);
        let is_free = |number: &u16| !siblings().any(|sibling| sibling.ports.values().any(|taken| taken == number));
        let free = match numbers[..] {
            [] => return Err(port.clone()),
            // A fixed port: a program that starts beside itself shares it.
            [number] if starts_beside(settings) => Some(number),
            _ => numbers.iter().copied().find(is_free),
        };
        let Some(number) = free else { return Ok(None) };
        ports.insert(port.clone(), number);
    }
    Ok(Some(ports))
}

/// Starts what should run and does not.
fn restarts(view: &View<'_>, alarm: &mut Alarm) -> Option<Step> {
    let due = |instance: &&Instance| {
        let observed = view.observed(instance);
        match observed.process {
            Process::Down { restart_at, .. } => alarm.is_due(restart_at.max(observed.retry_at)),
            Process::Up { .. } => false,
        }
    };
    let unconfirmed = view.leaving().filter(|instance| must_run(view, instance) && !returns(view, instance));
    view.staying().chain(unconfirmed).find(due).map(|instance| Step::Restart(instance.id))
}

/// Removes a release that is not desired, not run and not among the last ones.
fn removals(view: &View<'_>) -> Option<Step> {
    if matches!(view.desired, Desired::Unknown) || view.fetching {
        return None;
    }
    let desired = view.desired.release().map(|release| release.artifact);
    let is_needed = |digest: &&Digest| {
        view.journal.activated.contains(digest)
            || desired == Some(**digest)
            || view.journal.instances.iter().any(|instance| instance.artifact == **digest)
    };
    view.on_disk.iter().find(|digest| !is_needed(digest)).map(|digest| Step::Remove(*digest))
}

/// Deaths in a row after a process that lived for `lived_ms` ended, and when the instance may start again.
pub(super) fn after_end(deaths: u32, lived_ms: u64, now: u64, timing: &Timing) -> (u32, u64) {
    let deaths = if lived_ms >= timing.stable_after.0 { 1 } else { deaths.saturating_add(1) };
    (deaths, now.saturating_add(backoff_ms(deaths, timing.restart_first, timing.restart_most)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
