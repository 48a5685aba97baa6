//! The targets by name and by address, so that a session opens without reading state.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use swell_model::{
    change::{AppliedBatch, Change},
    fleet::{PortRange, Target},
    ids::TargetName,
    tables::{KeyPart, ReadTables, Scan, Table, TablesError},
};

/// Every target's record.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Targets {
    by_index: BTreeMap<u32, Arc<Target>>,
    by_name: HashMap<TargetName, u32>,
    by_address: BTreeMap<IpAddr, BTreeSet<u32>>,
}

impl Targets {
    /// Computes the indexes of all targets from state.
    ///
    /// # Errors
    /// When state cannot be read.
    pub fn from_tables<T: ReadTables>(tables: &T) -> Result<Self, TablesError> {
        let mut all = Self::default();
        tables.for_each(Scan::all(), |target: Target| all.put(Arc::new(target)))?;
        Ok(all)
    }

    /// Takes a batch in.
    pub fn update(&mut self, batch: &AppliedBatch) {
        for change in &batch.changes {
            match change {
                Change::Target(target) => self.put(Arc::clone(target)),
                Change::Removed(Table::Targets, key) => {
                    if let [KeyPart::Number(index)] = key.0.as_slice() {
                        self.remove(*index as u32);
                    }
                }
                _ => {}
            }
        }
    }

    /// The target of that name.
    pub fn named(&self, name: &TargetName) -> Option<&Arc<Target>> {
        self.by_index.get(self.by_name.get(name)?)
    }

    /// The targets but `name` at `address` whose port ranges overlap `ports`: gateways could not tell their instances apart.
    pub fn sharing<'t>(
        &'t self,
        address: IpAddr,
        ports: PortRange,
        name: &'t TargetName,
    ) -> impl Iterator<Item = &'t Arc<Target>> {
        let there = self.by_address.get(&address).into_iter().flatten().filter_map(|index| self.by_index.get(index));
        let overlaps = move |other: PortRange| other.first <= ports.last && ports.first <= other.last;
        there.filter(move |other| other.info.name != *name && overlaps(other.info.ports))
    }

    fn put(&mut self, target: Arc<Target>) {
        self.remove(target.index);
        self.by_name.insert(target.info.name.clone(), target.index);
        self.by_address.entry(target.info.address).or_default().insert(target.index);
        self.by_index.insert(target.index, target);
    }

    fn remove(&mut self, index: u32) {
        let Some(target) = self.by_index.remove(&index) else { return };
        self.by_name.remove(&target.info.name);
        if let Some(there) = self.by_address.get_mut(&target.info.address) {
            there.remove(&index);
            if there.is_empty() {
                self.by_address.remove(&target.info.address);
            }
        }
    }
}
