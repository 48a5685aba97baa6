//! Whether instances have proven themselves, and what is reported of them. Pure.

use std::collections::BTreeSet;

use super::{
    step::Fault,
    view::{Alarm, Desired, Process, UNHEALTHY_AFTER_FAILURES, View, starts_beside},
};
use crate::journal::{Instance, Role};
use swell_model::{
    fleet::observation::{InstanceState, Progress},
    ids::ServiceName,
    pipeline_file::Probe,
};

/// The fault of a new instance; `None` where there is none.
pub(super) fn fault(view: &View<'_>, instance: &Instance, alarm: &mut Alarm) -> Option<Fault> {
    let health = &instance.settings.settings.health;
    match view.process(instance) {
        Process::Down { died, .. } => died.then_some(Fault::Died),
        Process::Up { stopping: true, .. } => None,
        Process::Up { passed: true, failures, .. } if failures >= UNHEALTHY_AFTER_FAILURES => Some(Fault::StoppedAnswering),
        Process::Up { passed: false, since, .. } => {
            alarm.is_due(since.saturating_add(health.start_timeout.0)).then_some(Fault::NeverAnswered)
        }
        Process::Up { since, .. } if !is_ready(view, instance, alarm) => {
            // After the last moment for the first answer: `min_healthy`, and as many probes more as may fail.
            let grace = health.min_healthy.0 + u64::from(UNHEALTHY_AFTER_FAILURES) * (health.interval.0 + health.timeout.0);
            alarm.is_due(since.saturating_add(health.start_timeout.0).saturating_add(grace)).then_some(Fault::Unsteady)
        }
        Process::Up { .. } => None,
    }
}

/// Whether an instance has proven itself; one that is current has.
pub(super) fn is_ready(view: &View<'_>, instance: &Instance, alarm: &mut Alarm) -> bool {
    if instance.role == Role::Current {
        return true;
    }
    match view.process(instance) {
        Process::Up { passing_since: Some(since), stopping: false, .. } => {
            alarm.is_due(since.saturating_add(instance.settings.settings.health.min_healthy.0))
        }
        _ => false,
    }
}

/// What is reported of an instance; `None` of one that left.
pub(in super::super) fn instance_state(view: &View<'_>, instance: &Instance) -> Option<InstanceState> {
    let observed = view.observed(instance);
    let Process::Up { passing_since, failures, passed, stopping, .. } = observed.process else {
        return (instance.role != Role::Leaving).then_some(InstanceState::Unhealthy);
    };
    let health = &instance.settings.settings.health;
    // One that died and is not probed must first show that it stays up.
    let must_last = matches!(health.probe(), Probe::Alive) && observed.deaths > 0;
    let answers = passing_since.is_some_and(|since| !must_last || since.saturating_add(health.min_healthy.0) <= view.now);
    // One probe that fails is not yet news, unless it never answered.
    let answers = answers || (passed && !must_last && failures < UNHEALTHY_AFTER_FAILURES);
    Some(match instance.role {
        Role::Leaving => InstanceState::Draining,
        _ if stopping => InstanceState::Unhealthy,
        // Until the switch traffic goes to the old one; in place there is no other.
        Role::New if starts_beside(&instance.settings) => InstanceState::Starting,
        _ if answers => InstanceState::Serving,
        _ if failures >= UNHEALTHY_AFTER_FAILURES && passed => InstanceState::Unhealthy,
        _ => InstanceState::Starting,
    })
}

/// Whether an instance of each service answers, whichever its release.
pub(in super::super) fn is_serving(view: &View<'_>) -> bool {
    let serving: BTreeSet<&ServiceName> = (view.journal.instances.iter())
        .filter(|instance| instance_state(view, instance) == Some(InstanceState::Serving))
        .map(|instance| &instance.service)
        .collect();
    match (&view.journal.active, view.desired) {
        (_, Desired::Nothing) => false,
        (Some(active), _) => active.services.iter().all(|service| serving.contains(service)),
        (None, Desired::Release(release)) => release.services.keys().all(|service| serving.contains(service)),
        (None, Desired::Unknown) => false,
    }
}

/// How far the pipeline has come with what is desired, and when that changes by time alone.
pub(in super::super) fn progress(view: &View<'_>) -> (Progress, Option<u64>) {
    let Some(release) = view.desired.release() else {
        // With the last instance the link goes.
        let gone = view.journal.instances.is_empty() && view.journal.active.is_none();
        return (if gone { Progress::Stopped } else { Progress::Stopping }, None);
    };
    let mut alarm = Alarm::new(view);
    let is_switched = view.journal.active.as_ref().is_some_and(|active| active.release == release.release)
        && view.staying().all(|instance| instance.role == Role::Current)
        && release.services.keys().all(|service| view.staying().any(|instance| instance.service == *service));
    if is_switched {
        let mut is_healthy = |instance: &Instance| {
            let proven = match view.process(instance) {
                Process::Up { since, passed: true, .. } => {
                    // After a restart it must prove itself again.
                    view.observed(instance).deaths == 0
                        || alarm.is_due(since.saturating_add(instance.settings.settings.health.min_healthy.0))
                }
                _ => false,
            };
            instance_state(view, instance) == Some(InstanceState::Serving) && proven
        };
        let healthy = view.staying().all(&mut is_healthy);
        return (if healthy { Progress::Healthy } else { Progress::Unhealthy }, alarm.at);
    }
    let failed = view.journal.attempt.as_ref().is_some_and(|attempt| attempt.failed && attempt.release == release.release);
    let progress = match (failed, view.on_disk.contains(&release.artifact)) {
        (true, _) => Progress::Failed,
        (false, false) => Progress::Fetching,
        (false, true) => Progress::Starting,
    };
    (progress, None)
}
