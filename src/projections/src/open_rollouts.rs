//! Rollouts that have not ended, by pipeline and by target.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use swell_model::{
    change::{AppliedBatch, Change},
    ids::{EnvironmentName, PipelineName, RolloutId},
    rollout::{OpenRollout, Rollout},
    tables::{ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
};

/// The pipeline, environment and targets that a rollout affects.
#[derive(Debug, Clone, PartialEq)]
pub struct Concern {
    pub pipeline: PipelineName,
    pub environment: EnvironmentName,
    /// Planned for one of its waves, or told to run something else than the stable release before it.
    pub targets: RoaringBitmap,
}

/// The rollouts at work and those that wait.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OpenRollouts(BTreeMap<RolloutId, Concern>);

impl OpenRollouts {
    /// Computes the open rollouts from state.
    ///
    /// # Errors
    /// When state cannot be read.
    pub fn from_tables<T: ReadTables>(tables: &T) -> Result<Self, TablesError> {
        let mut all = Self::default();
        for open in tables.scan::<OpenRollout>(&Scan::all(), SCAN_RECORDS_MAX)? {
            if let Some(rollout) = tables.get::<Rollout>(&key(open.rollout.0))? {
                all.put(&rollout);
            }
        }
        Ok(all)
    }

    /// Takes a batch in.
    pub fn update(&mut self, batch: &AppliedBatch) {
        for change in &batch.changes {
            if let Change::Rollout(rollout) = change {
                self.put(rollout);
            }
        }
    }

    /// All of them.
    pub fn ids(&self) -> impl Iterator<Item = RolloutId> {
        self.0.keys().copied()
    }

    /// Those of `pipeline`.
    pub fn of_pipeline<'a>(&'a self, pipeline: &'a PipelineName) -> impl Iterator<Item = RolloutId> + 'a {
        self.0.iter().filter(move |(_, concern)| concern.pipeline == *pipeline).map(|(id, _)| *id)
    }

    /// Those in `environment`.
    pub fn in_environment<'a>(&'a self, environment: &'a EnvironmentName) -> impl Iterator<Item = RolloutId> + 'a {
        self.0.iter().filter(move |(_, concern)| concern.environment == *environment).map(|(id, _)| *id)
    }

    /// Those that concern any of `targets`.
    pub fn of_targets<'a>(&'a self, targets: &'a RoaringBitmap) -> impl Iterator<Item = RolloutId> + 'a {
        self.0.iter().filter(move |(_, concern)| !concern.targets.is_disjoint(targets)).map(|(id, _)| *id)
    }

    fn put(&mut self, rollout: &Rollout) {
        if rollout.state.is_end() {
            self.0.remove(&rollout.id);
            return;
        }
        let concern = Concern {
            pipeline: rollout.pipeline.clone(),
            environment: rollout.environment.clone(),
            targets: rollout.plan.targets() | rollout.touched(),
        };
        self.0.insert(rollout.id, concern);
    }
}
