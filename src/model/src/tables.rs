//! How the rules see state: typed records under ordered keys. Knows nothing of how they are encoded or kept.
//!
//! `storage` implements these traits on RocksDB; [`MemoryTables`] implements them on an ordered map, for tests and simulations.

use std::{any::Any, collections::BTreeMap, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

use crate::change::Change;

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
    /// Which agents a server is connected to.
    Presence,
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
}

impl Table {
    /// All of them.
    pub const ALL: [Table; 24] = [
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
        Table::Presence,
        Table::Deployments,
        Table::Rollouts,
        Table::OpenRollouts,
        Table::Observations,
        Table::PortLeases,
        Table::Runners,
        Table::ActorFailures,
        Table::Answers,
        Table::AnswersByTime,
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
            Table::Presence => "presence",
            Table::Deployments => "deployments",
            Table::Rollouts => "rollouts",
            Table::OpenRollouts => "open_rollouts",
            Table::Observations => "observations",
            Table::PortLeases => "port_leases",
            Table::Runners => "runners",
            Table::ActorFailures => "actor_failures",
            Table::Answers => "answers",
            Table::AnswersByTime => "answers_by_time",
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
    /// Under which key.
    fn key(&self) -> Key;
    /// The record as a change that others follow; `None` for what nobody follows.
    fn change(_record: Arc<Self>) -> Option<Change> {
        None
    }
}

/// State could not be read or written. Nothing of the command that met it is kept; the server stops and says why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {tried} {table}: {cause}", table = table.name())]
pub struct TablesError {
    /// `read` or `write`.
    pub tried: &'static str,
    /// Which table.
    pub table: Table,
    /// What the store said.
    pub cause: String,
}

/// The most records that one scan may ask for.
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

    /// At most `limit` records in order; `limit` itself is at most [`SCAN_RECORDS_MAX`].
    fn scan<R: Record>(&self, scan: &Scan, limit: usize) -> Result<Vec<R>, TablesError>;

    /// Gives `each` all records of `scan` in order, however many, with a thousand in memory at a time.
    fn for_each<R: Record>(&self, mut scan: Scan, mut each: impl FnMut(R)) -> Result<(), TablesError> {
        loop {
            let page: Vec<R> = self.scan(&scan, PAGE_RECORDS)?;
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
        value.downcast_ref().cloned().ok_or_else(|| TablesError {
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

    fn scan<R: Record>(&self, scan: &Scan, limit: usize) -> Result<Vec<R>, TablesError> {
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
        selected.take(limit.min(SCAN_RECORDS_MAX)).collect()
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
