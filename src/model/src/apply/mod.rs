//! The one function that changes state: `apply` carries a command out or rejects it. Deterministic; each entity has its part in its own folder.
//!
//! The caller gives it a savepoint: on a rejection or an error, whatever was written since is undone.

pub(crate) mod context;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use context::Applied;

use context::{Context, invalid};

use crate::{
    actor_failure::{ActorFailure, actor_failure_key},
    change::RecordingTables,
    clock::CLOCK_CONFIRM_AFTER,
    cluster::{ANSWER_AGE_MAX, ANSWERS_MAX, Answer, AnswerByTime, Cluster},
    command::{Action, ClusterAction, Command, IDEMPOTENCY_KEY_BYTES_MAX, Outcome},
    digest::Digest,
    event::{DataKey, EventKind, EventSeq, Subject, cut},
    principal::Role,
    rejection::{Rejection, RuleError},
    release::uses::settle,
    tables::{Key, Record, Scan, Tables, TablesError, key},
};

/// The most of an actor's failure that state keeps.
const ACTOR_FAILURE_BYTES_MAX: usize = 500;

/// How many outdated answers one command forgets at the most.
const ANSWERS_FORGOTTEN_AT_ONCE: usize = 4;

/// Carries out `command` as part of the log entry at `first.index`, with events numbered from `first`.
///
/// # Errors
/// [`RuleError::Rejected`] with the reason, or [`RuleError::Tables`] when state cannot be read or written. In both cases the
/// caller undoes what was written since it called.
pub fn apply<T: Tables>(tables: &mut T, first: EventSeq, command: &Command) -> Result<Applied, RuleError> {
    let cluster: Cluster = tables.get(&Key::all())?.unwrap_or_default();
    if let Some(idempotency_key) = &command.idempotency_key {
        let length_fits = (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&idempotency_key.len());
        if !length_fits || idempotency_key.chars().any(char::is_control) {
            let why = format!("it must have between 1 and {IDEMPOTENCY_KEY_BYTES_MAX} printable bytes");
            return Err(Rejection::Invalid { what: "idempotency key".into(), why }.into());
        }
        if let Some(answer) = tables.get::<Answer>(&key(idempotency_key.as_str()))? {
            let outcome = answer.replay(command.fingerprint)?;
            return Ok(Applied { outcome, events: Vec::new(), changes: Vec::new() });
        }
    }
    if let Some(sent) = command.epoch.filter(|sent| *sent != cluster.epoch) {
        return Err(Rejection::StaleEpoch { sent, now: cluster.epoch }.into());
    }
    let mut recording = RecordingTables::new(tables);
    let mut context = Context::new(&mut recording, cluster, command, first);
    let subject = dispatch(&mut context, command)?;
    let at = context.at;
    let mut applied = context.finish(subject)?;
    settle(&mut recording, at)?;
    applied.changes = recording.into_changes();
    if let Some(idempotency_key) = &command.idempotency_key {
        remember(tables, idempotency_key, command.fingerprint, &applied.outcome)?;
    }
    Ok(applied)
}

/// A check that makes an unsafe step impossible, whoever asks for it. Named so that the simulation can remove it, and must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// A forward step keeps to `max_unavailable` and to one zone.
    Availability,
    /// A step back keeps to the rollback's `max_unavailable` and to one zone.
    RollbackAvailability,
    /// What a passing verdict claims holds when it is applied.
    Verdict,
    /// Going back ends only when every touched target was reverted.
    EveryTargetReverted,
    /// A wall clock that jumps is not adopted.
    Clock,
}

/// Whether `check` is in force: always, outside the simulation of its absence.
#[cfg(not(test))]
pub(crate) const fn is_enforced(_: Check) -> bool {
    true
}

#[cfg(test)]
pub(crate) fn is_enforced(check: Check) -> bool {
    crate::simulation::plant::removed_check() != Some(check)
}

fn dispatch<T: Tables>(context: &mut Context<'_, T>, command: &Command) -> Result<Subject, RuleError> {
    match &command.action {
        Action::Cluster(action) => cluster(context, action),
        Action::Repository(action) => crate::repository::apply::apply(context, action),
        Action::Pipeline(action) => crate::pipeline::apply::apply(context, action),
        Action::Build(action) => crate::build::apply::apply(context, action),
        Action::Artifact(action) => crate::release::apply::apply(context, action),
        Action::Archive(action) => crate::archive::apply::apply(context, action),
        Action::Environment(action) => crate::fleet::environment_apply::apply(context, action),
        Action::Fleet(action) => crate::fleet::apply::apply(context, action),
        Action::Rollout(action) => crate::rollout::apply::apply(context, action),
    }
}

fn cluster<T: Tables>(context: &mut Context<'_, T>, action: &ClusterAction) -> Result<Subject, RuleError> {
    match action {
        ClusterAction::BeginEpoch { epoch, server } => {
            let now = context.cluster.epoch;
            if *epoch <= now {
                return Err(Rejection::StaleEpoch { sent: *epoch, now }.into());
            }
            context.cluster.epoch = *epoch;
            context.cluster.leader = *server;
            context.event(Subject::Cluster, EventKind::ClusterEpochBegun).moved(now.0, epoch.0).data(DataKey::Server, server);
            Ok(Subject::Cluster)
        }
        ClusterAction::ForgetEvents { up_to, chain_head, segment } => forget_events(context, *up_to, *chain_head, segment),
        ClusterAction::ConfirmTime => {
            let clock = context.cluster.clock;
            // A single server has no other clock to ask: either its own has been ahead for long enough, or a person says so.
            if !clock.is_steadily_ahead() && context.principal.role != Role::Admin {
                let why = format!("its clock has not been ahead by the same length for {CLOCK_CONFIRM_AFTER}");
                return Err(Rejection::Unavailable { subject: Subject::Cluster, why }.into());
            }
            context.cluster.clock.confirm(context.wall);
            let now = context.cluster.clock.now;
            context.event(Subject::Cluster, EventKind::ClusterTimeConfirmed).moved(clock.now.0, now.0);
            Ok(Subject::Cluster)
        }
        ClusterAction::RecordActorFailure { subject, why } => {
            let known = context.tables.get::<ActorFailure>(&actor_failure_key(subject))?;
            match (known, why) {
                (None, None) => {}
                (Some(_), None) => {
                    context.tables.delete::<ActorFailure>(&actor_failure_key(subject))?;
                    context.event(subject.clone(), EventKind::ActorRecovered);
                }
                (known, Some(why)) => {
                    let since = known.map_or(context.at, |known| known.since);
                    let why = cut(why, ACTOR_FAILURE_BYTES_MAX);
                    context.event(subject.clone(), EventKind::ActorFailed).note(&why);
                    context.tables.put(&ActorFailure { subject: subject.clone(), why, since })?;
                }
            }
            Ok(subject.clone())
        }
    }
}

/// Agrees that sealed events may leave the servers' event stores. Events are not in state: whoever proposes this has compared `chain_head`
/// with its own event store. The chain goes on from where it was cut.
fn forget_events<T: Tables>(
    context: &mut Context<'_, T>,
    up_to: EventSeq,
    chain_head: Digest,
    segment: &Digest,
) -> Result<Subject, RuleError> {
    let (first, last) = (context.cluster.events_forgotten_to, context.cluster.last_event);
    if up_to <= first || up_to > last {
        return Err(invalid(
            "up_to",
            format!("it must lie after {first}, where the log begins, and not after {last}, where it ends"),
        ));
    }
    context.cluster.events_forgotten_to = up_to;
    context.cluster.events_forgotten_head = chain_head;
    let event = context.event(Subject::Cluster, EventKind::ClusterEventsForgotten);
    event.data(DataKey::UpTo, up_to).data(DataKey::Segment, segment);
    Ok(Subject::Cluster)
}

/// Keeps the answer, and forgets a few that are too old or too many.
fn remember<T: Tables>(
    tables: &mut T,
    idempotency_key: &str,
    fingerprint: Option<Digest>,
    outcome: &Outcome,
) -> Result<(), TablesError> {
    let mut cluster: Cluster = tables.get(&Key::all())?.unwrap_or_default();
    let at = cluster.clock.now;
    tables.put(&Answer { key: idempotency_key.to_owned(), fingerprint, at, outcome: outcome.clone() })?;
    tables.put(&AnswerByTime { at, key: idempotency_key.to_owned() })?;
    cluster.answer_count += 1;
    for old in tables.scan::<AnswerByTime>(&Scan::all(), ANSWERS_FORGOTTEN_AT_ONCE)? {
        if at.since(old.at) <= ANSWER_AGE_MAX && cluster.answer_count <= ANSWERS_MAX {
            break;
        }
        tables.delete::<Answer>(&key(old.key.as_str()))?;
        tables.delete::<AnswerByTime>(&old.key())?;
        cluster.answer_count -= 1;
    }
    tables.put(&cluster)
}
