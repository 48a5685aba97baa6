//! Which agents are connected, by server and in all.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use swell_model::{
    change::{AppliedBatch, Change},
    fleet,
    tables::{KeyPart, ReadTables, Scan, Table, TablesError},
};

/// Who is recorded as connected.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Presence {
    servers: BTreeMap<u64, RoaringBitmap>,
    connected: RoaringBitmap,
}

impl Presence {
    /// Computes from state which targets are connected, and to which server.
    ///
    /// # Errors
    /// When state cannot be read.
    pub fn from_tables<T: ReadTables>(tables: &T) -> Result<Self, TablesError> {
        let mut all = Self::default();
        tables.for_each(Scan::all(), |presence: fleet::Presence| {
            all.servers.insert(presence.server, presence.connected);
        })?;
        all.unite();
        Ok(all)
    }

    /// Takes a batch in; says whether anybody came or went.
    pub fn update(&mut self, batch: &AppliedBatch) -> bool {
        let mut is_other = false;
        for change in &batch.changes {
            match change {
                Change::Presence(presence) => {
                    self.servers.insert(presence.server, presence.connected.clone());
                    is_other = true;
                }
                Change::Removed(Table::Presence, key) => {
                    if let [KeyPart::Number(server)] = key.0.as_slice() {
                        is_other |= self.servers.remove(server).is_some();
                    }
                }
                _ => {}
            }
        }
        is_other && {
            let before = std::mem::take(&mut self.connected);
            self.unite();
            self.connected != before
        }
    }

    /// The targets whose agents are connected to any server.
    pub fn connected(&self) -> &RoaringBitmap {
        &self.connected
    }

    /// The targets recorded as connected to `server`; `None`: it never recorded any.
    pub fn of_server(&self, server: u64) -> Option<&RoaringBitmap> {
        self.servers.get(&server)
    }

    fn unite(&mut self) {
        self.connected = self.servers.values().fold(RoaringBitmap::new(), |all, connected| all | connected);
    }
}
