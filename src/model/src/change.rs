//! What an applied command changed: the records that it wrote or removed, typed. Projections and actors follow these; events are for
//! people and for audit. Knows nothing of who follows.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    actor_failure::ActorFailure,
    build::{Build, OpenBuild, Runner},
    cluster::Cluster,
    event::Event,
    fleet::{Environment, LostTargets, PortLease, Presence, Target, observation::Observation},
    pipeline::{ConsideredRef, Pipeline},
    release::{Artifact, Release, Uses},
    repository::{Bundle, Ref, Repository},
    rollout::{Deployment, OpenRollout, Rollout},
    tables::{Key, ReadTables, Record, Scan, Table, Tables, TablesError},
};

/// One record as it is now. Records that nobody follows (remembered answers, events, indexes that follow from another record) have none.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Cluster(Arc<Cluster>),
    Repository(Arc<Repository>),
    Ref(Arc<Ref>),
    Bundle(Arc<Bundle>),
    Pipeline(Arc<Pipeline>),
    ConsideredRef(Arc<ConsideredRef>),
    Build(Arc<Build>),
    OpenBuild(Arc<OpenBuild>),
    Artifact(Arc<Artifact>),
    Release(Arc<Release>),
    Environment(Arc<Environment>),
    Target(Arc<Target>),
    Presence(Arc<Presence>),
    LostTargets(Arc<LostTargets>),
    Deployment(Arc<Deployment>),
    Rollout(Arc<Rollout>),
    OpenRollout(Arc<OpenRollout>),
    Observation(Arc<Observation>),
    PortLease(Arc<PortLease>),
    Runner(Arc<Runner>),
    ActorFailure(Arc<ActorFailure>),
    /// The record under this key is gone.
    Removed(Table, Key),
}

/// Everything that one batch of log entries changed, in the order in which it was applied. Published once, after it was committed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AppliedBatch {
    /// Log index of the last entry of the batch.
    pub index: u64,
    /// Changed records; a record that changed more than once in one command appears once.
    pub changes: Vec<Change>,
    /// Appended events, oldest first.
    pub events: Vec<Arc<Event>>,
}

/// Tables that note what is written through them, so that no rule can forget to announce a change.
pub struct RecordingTables<'t, T> {
    tables: &'t mut T,
    changes: BTreeMap<(Table, Key), Option<Change>>,
    /// Uses of releases before and after, of each record that has some.
    uses: BTreeMap<(Table, Key), (Uses, Uses)>,
}

impl<'t, T> RecordingTables<'t, T> {
    /// Nothing is changed yet.
    pub fn new(tables: &'t mut T) -> Self {
        Self { tables, changes: BTreeMap::new(), uses: BTreeMap::new() }
    }

    /// What was written, by table and key, each record once.
    pub fn into_changes(self) -> Vec<Change> {
        self.changes.into_values().flatten().collect()
    }

    /// How the uses of releases changed since this was last asked, record by record: before and after.
    pub(crate) fn take_uses(&mut self) -> Vec<(Uses, Uses)> {
        std::mem::take(&mut self.uses).into_values().collect()
    }

    fn note_uses<R: Record>(&mut self, key: &Key, after: Uses) -> Result<(), TablesError>
    where
        T: ReadTables,
    {
        if let Some((_, kept)) = self.uses.get_mut(&(R::TABLE, key.clone())) {
            *kept = after;
            return Ok(());
        }
        let before = self.tables.get::<R>(key)?.map(|record| record.uses()).unwrap_or_default();
        self.uses.insert((R::TABLE, key.clone()), (before, after));
        Ok(())
    }
}

impl<T: ReadTables> ReadTables for RecordingTables<'_, T> {
    fn get<R: Record>(&self, key: &Key) -> Result<Option<R>, TablesError> {
        self.tables.get(key)
    }

    fn read_first<R: Record>(&self, scan: &Scan, limit: usize) -> Result<Vec<R>, TablesError> {
        self.tables.read_first(scan, limit)
    }
}

impl<T: Tables> Tables for RecordingTables<'_, T> {
    fn put<R: Record>(&mut self, record: &R) -> Result<(), TablesError> {
        if R::HAS_USES {
            self.note_uses::<R>(&record.key(), record.uses())?;
        }
        self.tables.put(record)?;
        if R::IS_FOLLOWED {
            self.changes.insert((R::TABLE, record.key()), R::change(Arc::new(record.clone())));
        }
        Ok(())
    }

    fn delete<R: Record>(&mut self, key: &Key) -> Result<(), TablesError> {
        if R::HAS_USES {
            self.note_uses::<R>(key, Uses::default())?;
        }
        self.tables.delete::<R>(key)?;
        if R::IS_FOLLOWED {
            self.changes.insert((R::TABLE, key.clone()), Some(Change::Removed(R::TABLE, key.clone())));
        }
        Ok(())
    }
}
