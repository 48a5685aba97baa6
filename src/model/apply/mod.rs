//! The one function that changes state: `apply` carries a command out or rejects it. Deterministic; one file a resource.
//!
//! The caller gives it a savepoint: on a rejection or an error, whatever was written since is undone.

mod artifact;
mod build;
mod context;
mod environment;
mod fleet;
mod pipeline;
mod repository;
mod rollout;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use context::Applied;

use context::Context;

use super::{
    cluster::{ANSWER_AGE_MAX, ANSWERS_MAX, Answer, AnswerByTime, Cluster},
    command::{Action, ClusterAction, Command, IDEMPOTENCY_KEY_BYTES_MAX, Outcome},
    digest::Digest,
    event::{EventSeq, Subject, cut},
    rejection::{Rejection, RuleError},
    tables::{Key, Record, Scan, Tables, TablesError, key},
    trouble::{Trouble, trouble_key},
};

/// The most of an actor's failure that state keeps.
const TROUBLE_BYTES_MAX: usize = 500;

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
            return Ok(Applied { outcome, events: Vec::new() });
        }
    }
    if let Some(sent) = command.epoch.filter(|sent| *sent != cluster.epoch) {
        return Err(Rejection::StaleEpoch { sent, now: cluster.epoch }.into());
    }
    let mut context = Context::new(tables, cluster, command, first);
    let subject = dispatch(&mut context, command)?;
    let applied = context.finish(subject)?;
    if let Some(idempotency_key) = &command.idempotency_key {
        remember(tables, idempotency_key, command.fingerprint, &applied.outcome)?;
    }
    Ok(applied)
}

fn dispatch<T: Tables>(context: &mut Context<'_, T>, command: &Command) -> Result<Subject, RuleError> {
    match &command.action {
        Action::Cluster(action) => cluster(context, action),
        Action::Repository(action) => repository::apply(context, action),
        Action::Pipeline(action) => pipeline::apply(context, action),
        Action::Build(action) => build::apply(context, action),
        Action::Artifact(action) => artifact::apply(context, action),
        Action::Environment(action) => environment::apply(context, action),
        Action::Fleet(action) => fleet::apply(context, action),
        Action::Rollout(action) => rollout::apply(context, action),
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
            context.event(Subject::Cluster, "cluster.epoch").moved(now.0, epoch.0).data("server", server);
            Ok(Subject::Cluster)
        }
        ClusterAction::RecordTrouble { subject, why } => {
            let known = context.tables.get::<Trouble>(&trouble_key(subject))?;
            match (known, why) {
                (None, None) => {}
                (Some(_), None) => {
                    context.tables.delete::<Trouble>(&trouble_key(subject))?;
                    context.event(subject.clone(), "actor.recovered");
                }
                (known, Some(why)) => {
                    let since = known.map_or(context.at, |known| known.since);
                    let why = cut(why, TROUBLE_BYTES_MAX);
                    context.event(subject.clone(), "actor.failing").note(&why);
                    context.tables.put(&Trouble { subject: subject.clone(), why, since })?;
                }
            }
            Ok(subject.clone())
        }
    }
}

/// Keeps the answer, and forgets a few that are too old or too many.
fn remember<T: Tables>(
    tables: &mut T,
    idempotency_key: &str,
    fingerprint: Option<Digest>,
    outcome: &Outcome,
) -> Result<(), TablesError> {
    let mut cluster: Cluster = tables.get(&Key::all())?.unwrap_or_default();
    let at = cluster.clock;
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
