//! How the rules see state: typed records under ordered keys. Knows nothing of how they are encoded or kept.
//!
//! `storage` implements these traits on RocksDB; [`MemoryTables`] implements them on an ordered map, for tests and simulations.

use std::{any::Any, collections::BTreeMap, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

use crate::{change::Change, release::Uses};

/// Every kind of record. One column family each; the order here is not part of any format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// The one record of the whole cluster.
    Cluster,
    /// Hosted repositories.
    Repositories,
    /// Refs of hosted repositories.
    Refs,
    /// The bundles that hold a hosted repository's objects.
    Bundles,
    /// Pipelines.
    Pipelines,
    /// Which commit of a ref a pipeline considered last.
    ConsideredRefs,
    /// Builds with their attempts.
    Builds,
    /// Which build a commit of a pipeline has.
    BuildsByCommit,
    /// Builds that have not ended, oldest first.
    OpenBuilds,
    /// Artifacts.
    Artifacts,
    /// Releases.
    Releases,
    /// Environments.
    Environments,
    /// Targets, by their dense number.
    Targets,
    /// The number of a target's name.
    TargetsByName,
    /// The targets at an address.
    TargetsByAddress,
    /// Which agents a server is connected to.
    Presence,
    /// The targets that the leader declared lost.
    LostTargets,
    /// What a pipeline has in an environment.
    Deployments,
    /// Rollouts.
    Rollouts,
    /// Rollouts that have not ended.
    OpenRollouts,
    /// What a target said of a pipeline's release.
    Observations,
    /// The ports that a target keeps for a service.
    PortLeases,
    /// Runners.
    Runners,
    /// Subjects whose actors fail again and again.
    ActorFailures,
    /// Answers to commands that carried an idempotency key.
    Answers,
    /// The same, oldest first, so that they can be forgotten.
    AnswersByTime,
    /// Builds that wait for a runner, the longest waiting first.
    QueuedBuilds,
    /// Builds that wait for a runner, by the ref that led to them.
    QueuedByRef,
    /// How many open and running builds a pipeline has.
    PipelineLoads,
    /// Live attempts, by runner.
    LiveAttempts,
    /// What the live attempts of a runner take.
    RunnerLoads,
    /// How many records use a release.
    ReleaseUses,
    /// How many releases use an artifact.
    ArtifactUses,
    /// Artifacts that nothing needs, by the time when they expire.
    ArtifactExpiries,
    /// What leaves state for the archive, by the time when it is due.
    ArchiveEntries,
}

impl Table {
    /// All of them.
    pub const ALL: [Table; 35] = [
        Table::Cluster,
        Table::Repositories,
        Table::Refs,
        Table::Bundles,
        Table::Pipelines,
        Table::ConsideredRefs,
        Table::Builds,
        Table::BuildsByCommit,
        Table::OpenBuilds,
        Table::Artifacts,
        Table::Releases,
        Table::Environments,
        Table::Targets,
        Table::TargetsByName,
        Table::TargetsByAddress,
        Table::Presence,
        Table::LostTargets,
        Table::Deployments,
        Table::Rollouts,
        Table::OpenRollouts,
        Table::Observations,
        Table::PortLeases,
        Table::Runners,
        Table::ActorFailures,
        Table::Answers,
        Table::AnswersByTime,
        Table::QueuedBuilds,
        Table::QueuedByRef,
        Table::PipelineLoads,
        Table::LiveAttempts,
        Table::RunnerLoads,
        Table::ReleaseUses,
        Table::ArtifactUses,
        Table::ArtifactExpiries,
        Table::ArchiveEntries,
    ];

    /// The stable name, as the column family and `doctor` use it.
    pub const fn name(self) -> &'static str {
        match self {
            Table::Cluster => "cluster",
            Table::Repositories => "repositories",
            Table::Refs => "refs",
            Table::Bundles => "bundles",
            Table::Pipelines => "pipelines",
            Table::ConsideredRefs => "considered_refs",
            Table::Builds => "builds",
            Table::BuildsByCommit => "builds_by_commit",
            Table::OpenBuilds => "open_builds",
            Table::Artifacts => "artifacts",
            Table::Releases => "releases",
            Table::Environments => "environments",
            Table::Targets => "targets",
            Table::TargetsByName => "targets_by_name",
            Table::TargetsByAddress => "targets_by_address",
            Table::Presence => "presence",
            Table::LostTargets => "lost_targets",
            Table::Deployments => "deployments",
            Table::Rollouts => "rollouts",
            Table::OpenRollouts => "open_rollouts",
            Table::Observations => "observations",
            Table::PortLeases => "port_leases",
            Table::Runners => "runners",
            Table::ActorFailures => "actor_failures",
            Table::Answers => "answers",
            Table::AnswersByTime => "answers_by_time",
            Table::QueuedBuilds => "queued_builds",
            Table::QueuedByRef => "queued_by_ref",
            Table::PipelineLoads => "pipeline_loads",
            Table::LiveAttempts => "live_attempts",
            Table::RunnerLoads => "runner_loads",
            Table::ReleaseUses => "release_uses",
            Table::ArtifactUses => "artifact_uses",
            Table::ArtifactExpiries => "artifact_expiries",
            Table::ArchiveEntries => "archive_entries",
        }
    }
}

/// One part of a key. Keys are ordered part by part: numbers by value, texts by their bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyPart {
    /// A number.
    Number(u64),
    /// A text without NUL.
    Text(String),
}

impl From<u64> for KeyPart {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for KeyPart {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<&str> for KeyPart {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// The key of a record: one to four parts. A shorter key is the prefix of a range.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key(pub Vec<KeyPart>);

impl Key {
    /// The key with no part: the prefix of everything in a table.
    pub fn all() -> Self {
        Self::default()
    }

    /// This key with one part more.
    pub fn then(mut self, part: impl Into<KeyPart>) -> Self {
        self.0.push(part.into());
        self
    }
}

/// A key of one part.
pub fn key(part: impl Into<KeyPart>) -> Key {
    Key(vec![part.into()])
}

/// Something that state keeps under a key.
pub trait Record: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// Where it is kept.
    const TABLE: Table;

    /// Whether [`Record::change`] announces it.
    const IS_FOLLOWED: bool = false;
    /// Whether [`Record::uses`] says anything.
    const HAS_USES: bool = false;
    /// Under which key.
    fn key(&self) -> Key;
    /// The record as a change that others follow; `None` for what nobody follows.
    fn change(_record: Arc<Self>) -> Option<Change> {
        None
    }
    /// The releases that it keeps in state, and its own end.
    fn uses(&self) -> Uses {
        Uses::default()
    }
}

/// State could not be read or written. Nothing of the command that met it is kept; the server stops and says why.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// The store failed.
    #[error("failed to {tried} {table}: {cause}", table = table.name())]
    Failed {
        /// `read` or `write`.
        tried: &'static str,
        table: Table,
        /// What the store said.
        cause: String,
    },
    /// There are more records than one scan returns: a caller that wants them all uses [`ReadTables::for_each`].
    #[error("{table} has more than {most} records to scan at once; this is a defect, please report it", table = table.name(), most = SCAN_RECORDS_MAX)]
    TooMany { table: Table },
}

/// The most records that one scan returns. Where there are more, a scan that asks for so many fails instead of leaving some out.
pub const SCAN_RECORDS_MAX: usize = 100_000;

/// How many records [`ReadTables::for_each`] reads at a time.
const PAGE_RECORDS: usize = 1000;

/// Which records a scan returns, in the keys' order.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// Only keys that begin with these parts.
    pub prefix: Key,
    /// Only keys after this one (before it, when `backwards`).
    pub after: Option<Key>,
    /// Last first.
    pub backwards: bool,
}

impl Scan {
    /// All of a table.
    pub fn all() -> Self {
        Self::default()
    }

    /// What begins with `prefix`.
    pub fn prefix(prefix: Key) -> Self {
        Self { prefix, ..Self::default() }
    }

    /// Continue after `key`.
    pub fn after(mut self, key: Key) -> Self {
        self.after = Some(key);
        self
    }

    /// Last first.
    pub fn backwards(mut self) -> Self {
        self.backwards = true;
        self
    }
}

/// Reading state.
pub trait ReadTables {
    /// The record under `key`.
    fn get<R: Record>(&self, key: &Key) -> Result<Option<R>, TablesError>;

    /// The first `limit` records in order. What [`ReadTables::scan`] is made of.
    fn read_first<R: Record>(&self, scan: &Scan, limit: usize) -> Result<Vec<R>, TablesError>;

    /// The first `limit` records in order; with a `limit` of [`SCAN_RECORDS_MAX`], all of them.
    ///
    /// # Errors
    /// [`TablesError::TooMany`] where all were asked for and there are more than [`SCAN_RECORDS_MAX`].
    fn scan<R: Record>(&self, scan: &Scan, limit: usize) -> Result<Vec<R>, TablesError> {
        if limit < SCAN_RECORDS_MAX {
            return self.read_first(scan, limit);
        }
        let all = self.read_first(scan, SCAN_RECORDS_MAX + 1)?;
        if all.len() > SCAN_RECORDS_MAX { Err(TablesError::TooMany { table: R::TABLE }) } else { Ok(all) }
    }

    /// Gives `each` all records of `scan` in order, however many, with a thousand in memory at a time.
    fn for_each<R: Record>(&self, mut scan: Scan, mut each: impl FnMut(R)) -> Result<(), TablesError> {
        loop {
            let page: Vec<R> = self.read_first(&scan, PAGE_RECORDS)?;
            let Some(last) = page.last() else { return Ok(()) };
            scan.after = Some(last.key());
            page.into_iter().for_each(&mut each);
        }
    }
}

/// Changing state: what was written is read back at once.
pub trait Tables: ReadTables {
    /// Writes `record` under its key, over what was there.
    fn put<R: Record>(&mut self, record: &R) -> Result<(), TablesError>;

    /// Removes what is under `key`, if anything is.
    fn delete<R: Record>(&mut self, key: &Key) -> Result<(), TablesError>;
}

/// State in an ordered map, for tests and simulations. Cloning it is cheap: records are shared.
#[derive(Clone, Default)]
pub struct MemoryTables {
    records: BTreeMap<(Table, Key), Arc<dyn Any + Send + Sync>>,
}

impl MemoryTables {
    /// Nothing in any table.
    pub fn new() -> Self {
        Self::default()
    }

    fn record<R: Record>(value: &Arc<dyn Any + Send + Sync>) -> Result<R, TablesError> {
        value.downcast_ref().cloned().ok_or_else(|| TablesError::Failed {
            tried: "read",
            table: R::TABLE,
            cause: "a record of another kind is kept there".to_owned(),
        })
    }
}

impl ReadTables for MemoryTables {
    fn get<R: Record>(&self, key: &Key) -> Result<Option<R>, TablesError> {
        self.records.get(&(R::TABLE, key.clone())).map(Self::record).transpose()
    }

    fn read_first<R: Record>(&self, scan: &Scan, limit: usize) -> Result<Vec<R>, TablesError> {
        let within = |key: &Key| key.0.starts_with(&scan.prefix.0);
        let first = (R::TABLE, scan.prefix.clone());
        let selected = self.records.range(first..).take_while(|((table, key), _)| *table == R::TABLE && within(key));
        let beyond = |key: &Key| match &scan.after {
            None => true,
            Some(after) if scan.backwards => key < after,
            Some(after) => key > after,
        };
        let selected = selected.filter(|((_, key), _)| beyond(key)).map(|(_, value)| Self::record(value));
        if scan.backwards {
            let mut all = selected.collect::<Result<Vec<_>, _>>()?;
            all.reverse();
            all.truncate(limit);
            return Ok(all);
        }
        selected.take(limit).collect()
    }
}

impl Tables for MemoryTables {
    fn put<R: Record>(&mut self, record: &R) -> Result<(), TablesError> {
        self.records.insert((R::TABLE, record.key()), Arc::new(record.clone()));
        Ok(())
    }

    fn delete<R: Record>(&mut self, key: &Key) -> Result<(), TablesError> {
        self.records.remove(&(R::TABLE, key.clone()));
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{build::OpenBuild, ids::BuildId};

    #[test]
    fn scan_of_more_records_than_it_returns_fails_and_for_each_reads_them_all() {
        let mut tables = MemoryTables::new();
        let put = |tables: &mut MemoryTables, number: u64| {
            tables.put(&OpenBuild { build: BuildId(number), pipeline: "shop".parse().unwrap() }).unwrap();
        };
        (0..SCAN_RECORDS_MAX as u64).for_each(|number| put(&mut tables, number));
        let all = |tables: &MemoryTables| tables.scan::<OpenBuild>(&Scan::all(), SCAN_RECORDS_MAX).map(|all| all.len());
        assert_eq!(all(&tables).unwrap(), SCAN_RECORDS_MAX);
        put(&mut tables, SCAN_RECORDS_MAX as u64);
        assert!(matches!(all(&tables), Err(TablesError::TooMany { table: Table::OpenBuilds })));
        assert_eq!(tables.scan::<OpenBuild>(&Scan::all(), 3).unwrap().len(), 3);
        let mut count = 0;
        tables.for_each(Scan::all(), |_: OpenBuild| count += 1).unwrap();
        assert_eq!(count, SCAN_RECORDS_MAX + 1);
    }
}
