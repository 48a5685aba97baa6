//! Environments: creating, freezing, and clearing a release that was rolled back.

use std::collections::BTreeMap;

use crate::apply::context::{Context, invalid};
use crate::{
    command::EnvironmentAction,
    event::{DataKey, EventKind, Subject},
    fleet::{Environment, Freeze, LABELS_MAX, PolicyLimits, Target},
    ids::EnvironmentName,
    rejection::{Rejection, RuleError},
    rollout::Deployment,
    tables::{SCAN_RECORDS_MAX, Scan, Tables, key},
    units::Amount,
};

pub(crate) fn apply<T: Tables>(context: &mut Context<'_, T>, action: &EnvironmentAction) -> Result<Subject, RuleError> {
    match action {
        EnvironmentAction::Create { name, selector, policy } => create(context, name, selector, policy),
        EnvironmentAction::Freeze { name, why } => {
            let freeze = Freeze { why: why.clone(), by: context.principal.clone(), at: context.at };
            set_frozen(context, name, Some(freeze))
        }
        EnvironmentAction::Unfreeze { name } => set_frozen(context, name, None),
        EnvironmentAction::ClearQuarantine { name, release } => {
            let mut environment = context.environment(name)?;
            let subject = Subject::Environment(name.clone());
            context.check_revision(&subject, environment.revision)?;
            let mut deployment: Deployment = context.deployment(name, &release.pipeline)?;
            let before = deployment.quarantined.len();
            deployment.quarantined.retain(|quarantined| quarantined.release != *release);
            if deployment.quarantined.len() == before {
                return Err(Rejection::NotFound(Subject::Release(release.clone())).into());
            }
            context.tables.put(&deployment)?;
            environment.revision = context.index;
            context.tables.put(&environment)?;
            context.event(subject.clone(), EventKind::EnvironmentQuarantineCleared).data(DataKey::Release, release);
            Ok(subject)
        }
    }
}

fn create<T: Tables>(
    context: &mut Context<'_, T>,
    name: &EnvironmentName,
    selector: &BTreeMap<String, String>,
    policy: &PolicyLimits,
) -> Result<Subject, RuleError> {
    let subject = Subject::Environment(name.clone());
    if context.tables.get::<Environment>(&key(name.as_str()))?.is_some() {
        return Err(Rejection::Exists(subject).into());
    }
    check_labels(selector)?;
    if matches!(policy.first_wave_max, Some(Amount::Count(0))) {
        return Err(invalid("first_wave_max", "a first wave has at least one target"));
    }
    let mut environment = Environment {
        name: name.clone(),
        selector: selector.clone(),
        members: Default::default(),
        frozen: None,
        policy: policy.clone(),
        created_at: context.at,
        revision: context.index,
    };
    for target in context.tables.scan::<Target>(&Scan::all(), SCAN_RECORDS_MAX)? {
        if environment.selects(&target.info.labels) {
            environment.members.insert(target.index);
        }
    }
    context.event(subject.clone(), EventKind::EnvironmentCreated).data(DataKey::Targets, environment.members.len());
    context.tables.put(&environment)?;
    context.created.push(subject.clone());
    Ok(subject)
}

fn set_frozen<T: Tables>(
    context: &mut Context<'_, T>,
    name: &EnvironmentName,
    freeze: Option<Freeze>,
) -> Result<Subject, RuleError> {
    let mut environment = context.environment(name)?;
    let subject = Subject::Environment(name.clone());
    context.check_revision(&subject, environment.revision)?;
    match &freeze {
        Some(freeze) if freeze.why.trim().is_empty() => return Err(invalid("why", "say why nothing may be deployed")),
        Some(freeze) => context.event(subject.clone(), EventKind::EnvironmentFrozen).note(&freeze.why),
        None => context.event(subject.clone(), EventKind::EnvironmentUnfrozen),
    };
    environment.frozen = freeze;
    environment.revision = context.index;
    context.tables.put(&environment)?;
    Ok(subject)
}

/// Labels and selectors are small.
pub(crate) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), RuleError> {
    let short = |text: &String| text.len() <= 100 && !text.chars().any(char::is_control);
    if labels.len() > LABELS_MAX || !labels.iter().all(|(name, value)| !name.is_empty() && short(name) && short(value)) {
        return Err(invalid("labels", format!("there may be {LABELS_MAX} of them, with names and values of up to 100 bytes")));
    }
    Ok(())
}
