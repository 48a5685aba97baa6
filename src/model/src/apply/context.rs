//! What the rules have at hand while they apply one command: the tables, the time, and the events they append.

use std::{cell::Cell, collections::BTreeMap, fmt};

use crate::{
    apply::{Check, is_enforced},
    build::Build,
    change::Change,
    cluster::Cluster,
    command::{Command, Outcome},
    event::{DataKey, Event, EventKind, EventSeq, NOTE_BYTES_MAX, Subject, cut},
    fleet::{Environment, Target, TargetByName},
    ids::{BuildId, EnvironmentName, PipelineName, ReleaseId, RolloutId, TargetName},
    pipeline::Pipeline,
    principal::Principal,
    rejection::{Rejection, RuleError},
    release::{Release, release_key},
    rollout::{Deployment, Rollout, deployment_key},
    tables::{Record, Tables, key},
    units::Timestamp,
};

/// What an applied command led to.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The answer for whoever proposed it.
    pub outcome: Outcome,
    /// The events that it appended, in order.
    pub events: Vec<Event>,
    /// The records that it changed; the caller of [`super::apply`] gets them, [`Context::finish`] leaves them empty.
    pub changes: Vec<Change>,
}

/// One command being applied.
pub(crate) struct Context<'a, T> {
    pub tables: &'a mut T,
    pub cluster: Cluster,
    pub principal: Principal,
    /// The adopted time.
    pub at: Timestamp,
    /// The leader's wall clock.
    pub wall: Timestamp,
    /// The log index: what an entity's revision becomes.
    pub index: u64,
    pub if_revision: Option<u64>,
    /// Whether [`Context::check_revision`] was asked.
    revision_checked: Cell<bool>,
    pub created: Vec<Subject>,
    next: EventSeq,
    drafts: Vec<Draft>,
}

/// An event that has no place in the log yet.
pub(crate) struct Draft {
    subject: Subject,
    kind: EventKind,
    from: Option<String>,
    to: Option<String>,
    note: Option<String>,
    data: BTreeMap<DataKey, String>,
}

impl Draft {
    /// The subject's state changed.
    pub fn moved(&mut self, from: impl fmt::Display, to: impl fmt::Display) -> &mut Self {
        self.from = Some(from.to_string());
        self.to = Some(to.to_string());
        self
    }

    /// Why, for people.
    pub fn note(&mut self, note: impl AsRef<str>) -> &mut Self {
        self.note = Some(cut(note.as_ref(), NOTE_BYTES_MAX));
        self
    }

    /// A small value for programs.
    pub fn data(&mut self, key: DataKey, value: impl fmt::Display) -> &mut Self {
        self.data.insert(key, cut(&value.to_string(), NOTE_BYTES_MAX));
        self
    }
}

impl<'a, T: Tables> Context<'a, T> {
    pub fn new(tables: &'a mut T, mut cluster: Cluster, command: &Command, first: EventSeq) -> Self {
        cluster.clock.advance(command.at, command.monotonic);
        if !is_enforced(Check::Clock) {
            cluster.clock.confirm(command.at);
        }
        Self {
            at: cluster.clock.now,
            wall: command.at,
            cluster,
            tables,
            principal: command.principal.clone(),
            index: first.index,
            if_revision: command.if_revision,
            revision_checked: Cell::new(false),
            created: Vec::new(),
            next: first,
            drafts: Vec::new(),
        }
    }

    /// Appends an event about `subject`.
    pub fn event(&mut self, subject: Subject, kind: EventKind) -> &mut Draft {
        let draft = Draft { subject, kind, from: None, to: None, note: None, data: BTreeMap::new() };
        self.drafts.push(draft);
        let last = self.drafts.len() - 1;
        &mut self.drafts[last]
    }

    /// Writes the events and the cluster's record. A revision that nothing was held to is refused rather than ignored.
    pub fn finish(mut self, subject: Subject) -> Result<Applied, RuleError> {
        if self.if_revision.is_some() && !self.revision_checked.get() {
            return Err(invalid("If-Match", "it is not for this: send the request without it"));
        }
        let mut events = Vec::with_capacity(self.drafts.len());
        for draft in self.drafts {
            let event = Event {
                seq: self.next,
                at: self.at,
                principal: self.principal.clone(),
                subject: draft.subject,
                kind: draft.kind,
                from: draft.from,
                to: draft.to,
                note: draft.note,
                data: draft.data,
                previous: self.cluster.event_head,
            };
            self.cluster.event_head = event.chain_hash();
            self.cluster.last_event = event.seq;
            self.cluster.event_count += 1;
            self.next.ordinal += 1;
            events.push(event);
        }
        self.tables.put(&self.cluster)?;
        let outcome = Outcome { subject, created: self.created, last_event: self.cluster.last_event, replayed: false };
        Ok(Applied { outcome, events, changes: Vec::new() })
    }

    /// Checks `If-Match` against the revision of what the command is about.
    pub fn check_revision(&self, subject: &Subject, now: u64) -> Result<(), Rejection> {
        self.revision_checked.set(true);
        match self.if_revision {
            Some(expected) if expected != now => Err(Rejection::Changed { subject: subject.clone(), expected, now }),
            _ => Ok(()),
        }
    }

    fn require<R: Record>(&self, key: &crate::tables::Key, subject: Subject) -> Result<R, RuleError> {
        self.tables.get(key)?.ok_or_else(|| Rejection::NotFound(subject).into())
    }

    pub fn pipeline(&self, name: &PipelineName) -> Result<Pipeline, RuleError> {
        self.require(&key(name.as_str()), Subject::Pipeline(name.clone()))
    }

    pub fn environment(&self, name: &EnvironmentName) -> Result<Environment, RuleError> {
        self.require(&key(name.as_str()), Subject::Environment(name.clone()))
    }

    pub fn build(&self, id: BuildId) -> Result<Build, RuleError> {
        self.require(&key(id.0), Subject::Build(id))
    }

    pub fn release(&self, id: &ReleaseId) -> Result<Release, RuleError> {
        self.require(&release_key(id), Subject::Release(id.clone()))
    }

    pub fn rollout(&self, id: RolloutId) -> Result<Rollout, RuleError> {
        self.require(&key(id.0), Subject::Rollout(id))
    }

    pub fn target(&self, name: &TargetName) -> Result<Target, RuleError> {
        let by_name: TargetByName = self.require(&key(name.as_str()), Subject::Target(name.clone()))?;
        self.require(&key(by_name.index), Subject::Target(name.clone()))
    }

    /// What the pipeline has in the environment; nothing yet, where it was never deployed there.
    pub fn deployment(&self, environment: &EnvironmentName, pipeline: &PipelineName) -> Result<Deployment, RuleError> {
        let kept = self.tables.get(&deployment_key(environment, pipeline))?;
        Ok(kept.unwrap_or_else(|| Deployment {
            environment: environment.clone(),
            pipeline: pipeline.clone(),
            stable: None,
            rollout: None,
            next: None,
            history: Vec::new(),
            quarantined: Vec::new(),
            retained: Vec::new(),
        }))
    }
}

/// A value that cannot be what it was given as.
pub(crate) fn invalid(what: &str, why: impl Into<String>) -> RuleError {
    Rejection::Invalid { what: what.to_owned(), why: why.into() }.into()
}
