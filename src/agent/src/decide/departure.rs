//! How instances leave: confirmed, drained, stopped, forgotten. Pure.
//!
//! An instance to which gateways may still send requests keeps running until a report that shows its departure is confirmed, however
//! long there is no server: gateways that lost their servers too go on with the routes that they have.

use super::{
    step::Step,
    view::{Alarm, Desired, Process, View, starts_beside},
};
use crate::{
    journal::{Departure, Instance},
    reports::Confirmed,
};

/// What the departure of `instance` waits for when it begins to leave for `desired`.
pub(in super::super) fn departure_of(instance: &Instance, desired: &Desired) -> Departure {
    // Gateways route to whatever has a port.
    let is_routable = !instance.ports.is_empty();
    let has_successor = desired.release().is_some() && starts_beside(&instance.settings);
    match (instance.served, is_routable && has_successor) {
        (false, _) => Departure::Immediate,
        (true, false) => Departure::Acknowledged,
        (true, true) => Departure::Routed,
    }
}

/// Whether `instance`, whose departure version `version` of the pipeline's report shows, may drain.
pub(in super::super) fn is_confirmed(departure: Departure, version: u64, confirmed: Confirmed) -> bool {
    match departure {
        Departure::Immediate | Departure::Confirmed => true,
        Departure::Acknowledged => confirmed.acknowledged >= version,
        Departure::Routed => confirmed.routed >= version,
    }
}

/// The instances whose departure is to be confirmed by servers or gateways and is not yet.
pub(in super::super) fn unconfirmed<'a>(view: &View<'a>) -> impl Iterator<Item = &'a Instance> {
    let observed = view.observed;
    let is_confirmed = |id: &u64| observed.get(id).is_some_and(|observed| observed.confirmed);
    view.leaving().filter(move |instance| awaits_confirmation(instance) && !is_confirmed(&instance.id))
}

fn awaits_confirmation(instance: &Instance) -> bool {
    matches!(instance.departure, Departure::Acknowledged | Departure::Routed)
}

/// Whether a leaving instance must still run: gateways may send it requests, and there may be nobody else who answers them.
pub(super) fn must_run(view: &View<'_>, instance: &Instance) -> bool {
    instance.departure == Departure::Routed && *view.desired != Desired::Nothing && !view.observed(instance).confirmed
}

/// The next step of those that leave.
pub(super) fn departures(view: &View<'_>, alarm: &mut Alarm) -> Option<Step> {
    for instance in view.leaving().filter(|instance| !returns(view, instance)) {
        let observed = view.observed(instance);
        match observed.process {
            Process::Down { .. } if must_run(view, instance) => {}
            Process::Down { .. } if alarm.is_due(observed.retry_at) => return Some(Step::Forget(instance.id)),
            Process::Up { stopping: false, .. } if awaits_confirmation(instance) => {
                if observed.confirmed {
                    return Some(Step::Drain(instance.id));
                }
            }
            Process::Up { stopping: false, .. } => {
                let drain_ms = if instance.served { instance.settings.settings.stop.drain.0 } else { 0 };
                if alarm.is_due(observed.draining_since.saturating_add(drain_ms)) {
                    return Some(Step::Stop(instance.id));
                }
            }
            Process::Down { .. } | Process::Up { stopping: true, .. } => {}
        }
    }
    None
}

/// Whether a leaving instance is desired again and still good.
pub(super) fn returns(view: &View<'_>, instance: &Instance) -> bool {
    let Some(release) = view.desired.release() else { return false };
    let is_good = matches!(view.process(instance), Process::Up { stopping: false, passing_since: Some(_), .. });
    let is_alone = !view.staying().any(|other| other.service == instance.service && other.release == instance.release);
    is_good
        && is_alone
        && instance.served
        && instance.release == release.release
        && release.services.contains_key(&instance.service)
}
