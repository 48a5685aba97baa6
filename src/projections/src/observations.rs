//! What is known of each target's reports: one number a target, by which an agent that reconnects need not repeat what state holds.

use std::collections::BTreeMap;

use swell_model::{
    change::{AppliedBatch, Change},
    fleet::observation::{Observation, ReportsHash},
    ids::PipelineName,
    tables::{KeyPart, ReadTables, Scan, Table, TablesError},
};

/// [`ReportsHash`] of what state holds of each target, dense by target number.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observations {
    targets: Vec<ReportsHash>,
    /// What each report counts for, so that its successor can replace it.
    parts: BTreeMap<(u32, PipelineName), u128>,
}

impl Observations {
    /// Computes the sums from state.
    ///
    /// # Errors
    /// When state cannot be read.
    pub fn from_tables<T: ReadTables>(tables: &T) -> Result<Self, TablesError> {
        let mut all = Self::default();
        tables.for_each(Scan::all(), |observation: Observation| all.put(&observation))?;
        Ok(all)
    }

    /// Takes a batch in.
    pub fn update(&mut self, batch: &AppliedBatch) {
        for change in &batch.changes {
            match change {
                Change::Observation(observation) => self.put(observation),
                Change::Removed(Table::Observations, key) => {
                    if let [KeyPart::Text(pipeline), KeyPart::Number(target)] = key.0.as_slice()
                        && let Ok(pipeline) = pipeline.parse()
                    {
                        self.replace(*target as u32, pipeline, None);
                    }
                }
                _ => {}
            }
        }
    }

    /// What state holds of `target`.
    pub fn hash(&self, target: u32) -> ReportsHash {
        self.targets.get(target as usize).copied().unwrap_or_default()
    }

    fn put(&mut self, observation: &Observation) {
        let mut part = ReportsHash::default();
        part.add(&observation.report);
        self.replace(observation.target, observation.report.pipeline.clone(), Some(part.0));
    }

    fn replace(&mut self, target: u32, pipeline: PipelineName, part: Option<u128>) {
        let before = match part {
            Some(part) => self.parts.insert((target, pipeline), part),
            None => self.parts.remove(&(target, pipeline)),
        };
        let index = target as usize;
        if self.targets.len() <= index {
            self.targets.resize(index + 1, ReportsHash::default());
        }
        let hash = &mut self.targets[index].0;
        *hash = hash.wrapping_sub(before.unwrap_or(0)).wrapping_add(part.unwrap_or(0));
    }
}
