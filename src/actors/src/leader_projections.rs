//! What a leader knows of state without reading it: the queue, open rollouts, who is connected, which pipelines a repository has. Says which
//! changes concern whom. Knows nothing of the actors themselves.

use std::collections::{BTreeMap, BTreeSet};

use roaring::RoaringBitmap;

use swell_model::{
    change::{AppliedBatch, Change},
    ids::{BuildId, EnvironmentName, PipelineName, RepositoryName, RolloutId},
    pipeline::{Pipeline, Source},
    tables::{KeyPart, ReadTables, Scan, Table, TablesError},
};
use swell_projections::{build_queue::BuildQueue, open_rollouts::OpenRollouts, presence::Presence};

/// Whom a batch concerns. Those whose subject has not ended are spawned where they are missing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Concerned {
    pub scheduler: bool,
    pub presence: bool,
    pub pipelines: BTreeSet<PipelineName>,
    /// With whether the build has not ended.
    pub builds: BTreeMap<BuildId, bool>,
    pub rollouts: BTreeMap<RolloutId, bool>,
}

/// Projections of a leader, as of one log index.
#[derive(Debug, Default)]
pub(super) struct LeaderProjections {
    pub queue: BuildQueue,
    pub rollouts: OpenRollouts,
    pub presence: Presence,
    /// The pipelines, with the hosted repository that each one builds.
    pipelines: BTreeMap<PipelineName, Option<RepositoryName>>,
}

impl LeaderProjections {
    /// Computes every projection from state.
    ///
    /// # Errors
    /// When state cannot be read.
    pub fn from_tables<T: ReadTables>(tables: &T) -> Result<Self, TablesError> {
        let mut pipelines = BTreeMap::new();
        tables.for_each(Scan::all(), |pipeline: Pipeline| {
            let repository = hosted(&pipeline);
            pipelines.insert(pipeline.name, repository);
        })?;
        Ok(Self {
            queue: BuildQueue::from_tables(tables)?,
            rollouts: OpenRollouts::from_tables(tables)?,
            presence: Presence::from_tables(tables)?,
            pipelines,
        })
    }

    /// Takes a batch in and says whom it concerns.
    pub fn update(&mut self, batch: &AppliedBatch) -> Concerned {
        let connected = self.presence.connected().clone();
        let mut concerned =
            Concerned { scheduler: self.queue.update(batch), presence: self.presence.update(batch), ..Concerned::default() };
        self.rollouts.update(batch);
        for change in &batch.changes {
            self.concern(change, &mut concerned);
        }
        if concerned.presence {
            self.concern_targets(&(connected ^ self.presence.connected()), &mut concerned);
        }
        concerned
    }

    fn concern(&mut self, change: &Change, concerned: &mut Concerned) {
        match change {
            Change::Pipeline(pipeline) => {
                self.pipelines.insert(pipeline.name.clone(), hosted(pipeline));
                concerned.pipelines.insert(pipeline.name.clone());
            }
            Change::Removed(Table::Pipelines, key) => {
                if let [KeyPart::Text(name)] = key.0.as_slice()
                    && let Ok(name) = name.parse::<PipelineName>()
                {
                    self.pipelines.remove(&name);
                    concerned.pipelines.insert(name);
                }
            }
            Change::Ref(moved) => self.concern_repository(&moved.repository, concerned),
            Change::Removed(Table::Refs, key) => {
                if let Some(KeyPart::Text(name)) = key.0.first()
                    && let Ok(name) = name.parse()
                {
                    self.concern_repository(&name, concerned);
                }
            }
            Change::Build(build) => {
                concerned.builds.insert(build.id, !build.state.is_end());
            }
            Change::Rollout(rollout) => {
                concerned.rollouts.insert(rollout.id, !rollout.state.is_end());
            }
            Change::Deployment(deployment) => self.concern_environment(&deployment.environment, concerned),
            Change::Environment(environment) => self.concern_environment(&environment.name, concerned),
            // One that is lost no longer has connected: the change of presence concerns its rollouts.
            Change::LostTargets(lost) => self.concern_targets(&lost.targets, concerned),
            Change::Target(target) => self.concern_targets(&RoaringBitmap::from([target.index]), concerned),
            _ => {}
        }
    }

    fn concern_repository(&self, repository: &RepositoryName, concerned: &mut Concerned) {
        let of_it = self.pipelines.iter().filter(|(_, source)| source.as_ref() == Some(repository));
        concerned.pipelines.extend(of_it.map(|(pipeline, _)| pipeline.clone()));
    }

    fn concern_environment(&self, environment: &EnvironmentName, concerned: &mut Concerned) {
        self.rollouts.in_environment(environment).for_each(|id| {
            concerned.rollouts.entry(id).or_insert(true);
        });
    }

    fn concern_targets(&self, targets: &RoaringBitmap, concerned: &mut Concerned) {
        self.rollouts.of_targets(targets).for_each(|id| {
            concerned.rollouts.entry(id).or_insert(true);
        });
    }
}

/// The hosted repository that a pipeline builds.
fn hosted(pipeline: &Pipeline) -> Option<RepositoryName> {
    match &pipeline.source {
        Source::Hosted(repository) => Some(repository.clone()),
        Source::Remote(_) => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::{
        apply::testing::{FILE, World, name},
        command::{EnvironmentAction, FleetAction, RolloutAction},
        rollout::Purpose,
    };

    /// Whom the last command concerns.
    fn last(projections: &mut LeaderProjections, world: &World) -> Concerned {
        let changes = world.applied.last().unwrap().changes.clone();
        projections.update(&AppliedBatch { index: world.index, changes, events: Vec::new() })
    }

    #[test]
    fn change_concerns_its_subject_and_who_waits_for_it() {
        let (mut world, file) = World::with_fleet(4, FILE);
        let release = world.release(1, &file);
        let mut projections = LeaderProjections::from_tables(&world.tables).unwrap();
        let id = world.start(&release, Purpose::Deploy).unwrap();
        let concerned = last(&mut projections, &world);
        assert_eq!((concerned.rollouts, concerned.scheduler), (BTreeMap::from([(id, true)]), false));

        let build = world.request(2);
        let concerned = last(&mut projections, &world);
        assert_eq!((concerned.builds, concerned.scheduler), (BTreeMap::from([(build, true)]), true));
        assert!(concerned.rollouts.is_empty(), "a build wakes no rollout");

        world.ok(EnvironmentAction::Freeze { name: name("production"), why: "holiday".into() });
        assert_eq!(last(&mut projections, &world).rollouts, BTreeMap::from([(id, true)]));
        world.ok(FleetAction::Presence { server: 1, connected: RoaringBitmap::from([0, 1]) });
        let concerned = last(&mut projections, &world);
        assert_eq!((concerned.presence, concerned.rollouts), (true, BTreeMap::from([(id, true)])));

        world.ok(RolloutAction::Abort { rollout: id, why: "no".into() });
        assert_eq!(last(&mut projections, &world).rollouts.get(&id), Some(&false), "one that ended is not spawned again");
    }
}
