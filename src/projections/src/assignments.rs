//! What each target should run: targets grouped by release in each deployment, every release described once. Who is connected and what
//! was sent to whom is not known here.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use roaring::RoaringBitmap;

use swell_model::{
    change::{AppliedBatch, Change},
    cluster::Cluster,
    digest::Digest,
    fleet::{Environment, PortLease, Target},
    ids::{EnvironmentName, PipelineName, ReleaseId, RolloutId, TargetName},
    release::{Artifact, Release, release_key},
    rollout::{
        Deployment, OpenRollout, Rollout,
        assignment::{DesiredHasher, DesiredRelease, DesiredTarget, Generation, assigned_sets},
    },
    tables::{Key, KeyPart, ReadTables, SCAN_RECORDS_MAX, Scan, Table, TablesError, key},
};

/// A release as it runs in an environment, shared by all targets that run it.
#[derive(Debug, Clone, PartialEq)]
struct AssignedRelease {
    release: DesiredRelease,
    /// Identifies what all targets share: [`DesiredRelease::shared_hash`].
    hash: Digest,
}

/// What a pipeline has in an environment.
#[derive(Debug, Clone, PartialEq)]
struct AssignedDeployment {
    record: Arc<Deployment>,
    /// The environment's members by the release that they should run; who should run nothing is in none.
    sets: BTreeMap<ReleaseId, RoaringBitmap>,
    /// `None`: its artifact is gone, so nobody can run it.
    releases: BTreeMap<ReleaseId, Option<Arc<AssignedRelease>>>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct AssignedEnvironment {
    members: RoaringBitmap,
    deployments: BTreeMap<PipelineName, AssignedDeployment>,
}

/// What targets should run, as of one log index.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Assignments {
    generation: Generation,
    environments: BTreeMap<EnvironmentName, AssignedEnvironment>,
    /// Rollouts that have not ended, and those that a deployment still names.
    rollouts: BTreeMap<RolloutId, Arc<Rollout>>,
    /// By target number.
    targets: Vec<Option<AssignedTarget>>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct AssignedTarget {
    /// `None` before its record is known.
    name: Option<TargetName>,
    leases: Vec<PortLease>,
}

type DeploymentKey = (EnvironmentName, PipelineName);

impl Assignments {
    /// What state as of the log index `applied` says.
    ///
    /// # Errors
    /// When state cannot be read.
    pub fn from_tables<T: ReadTables>(tables: &T, applied: u64) -> Result<Self, TablesError> {
        let cluster: Cluster = tables.get(&Key::all())?.unwrap_or_default();
        let mut all = Self { generation: Generation { cluster: cluster.generation, index: applied }, ..Self::default() };
        tables.for_each(Scan::all(), |target: Target| all.target(target.index).name = Some(target.info.name))?;
        tables.for_each(Scan::all(), |lease: PortLease| all.target(lease.target).leases.push(lease))?;
        tables.for_each(Scan::all(), |environment: Environment| {
            all.environments.entry(environment.name).or_default().members = environment.members;
        })?;
        for open in tables.scan::<OpenRollout>(&Scan::all(), SCAN_RECORDS_MAX)? {
            all.load_rollout(tables, open.rollout)?;
        }
        let mut deployments = Vec::new();
        tables.for_each(Scan::all(), |deployment: Deployment| deployments.push(Arc::new(deployment)))?;
        for record in deployments {
            if let Some(id) = record.rollout {
                all.load_rollout(tables, id)?;
            }
            let key = (record.environment.clone(), record.pipeline.clone());
            all.put_deployment(record);
            all.assign(tables, &key)?;
        }
        Ok(all)
    }

    /// Takes a batch in and returns the targets whose desired state may have changed. `tables` holds at least that batch; only releases
    /// that no target was assigned before are read from it.
    ///
    /// # Errors
    /// When state cannot be read. The projection must then be built anew.
    pub fn update<T: ReadTables>(&mut self, batch: &AppliedBatch, tables: &T) -> Result<RoaringBitmap, TablesError> {
        let mut changed = RoaringBitmap::new();
        let mut stale = BTreeSet::new();
        for change in &batch.changes {
            self.take(change, &mut changed, &mut stale);
        }
        for key in &stale {
            changed |= self.assign(tables, key)?;
        }
        if !stale.is_empty() {
            let deployments = self.environments.values().flat_map(|environment| environment.deployments.values());
            let named: BTreeSet<RolloutId> = deployments.filter_map(|deployment| deployment.record.rollout).collect();
            self.rollouts.retain(|id, rollout| !rollout.state.is_end() || named.contains(id));
        }
        self.generation.index = batch.index;
        Ok(changed)
    }

    /// Returns the generation of the state that the assignments were computed from.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    #[cfg(test)]
    pub(crate) fn at_index(&mut self, index: u64) {
        self.generation.index = index;
    }

    /// All that a target should run; `None`: there is no such target.
    pub fn desired(&self, target: u32) -> Option<DesiredTarget> {
        let known = self.targets.get(target as usize)?.as_ref()?;
        let name = known.name.clone()?;
        let assigned = self.assigned(target).into_iter();
        let deployments = assigned.map(|(pipeline, assigned)| (pipeline.clone(), assigned.release.with_ports(&known.leases)));
        Some(DesiredTarget { generation: self.generation, target: name, deployments: deployments.collect() })
    }

    /// [`DesiredTarget::hash`] of what [`Assignments::desired`] returns.
    pub fn hash(&self, target: u32) -> Option<Digest> {
        let known = self.targets.get(target as usize)?.as_ref()?;
        known.name.as_ref()?;
        let mut hasher = DesiredHasher::default();
        for (pipeline, assigned) in self.assigned(target) {
            let ports: Vec<_> = assigned.release.ports_with(&known.leases).collect();
            hasher.add(
                pipeline,
                &assigned.hash,
                ports.iter().map(|(service, port, numbers)| (*service, *port, numbers.as_slice())),
            );
        }
        Some(hasher.finish())
    }

    /// The releases of a target by pipeline. Of two environments with one pipeline, which the rules refuse, the first by name counts.
    fn assigned(&self, target: u32) -> BTreeMap<&PipelineName, &AssignedRelease> {
        let mut assigned = BTreeMap::new();
        for environment in self.environments.values().filter(|environment| environment.members.contains(target)) {
            for (pipeline, deployment) in &environment.deployments {
                let of_target = deployment.sets.iter().find(|(_, targets)| targets.contains(target));
                let release = of_target.and_then(|(release, _)| deployment.releases.get(release)?.as_deref());
                if let (Some(release), Entry::Vacant(entry)) = (release, assigned.entry(pipeline)) {
                    entry.insert(release);
                }
            }
        }
        assigned
    }

    /// Takes in one record. Deployments that must be assigned anew become `stale`.
    fn take(&mut self, change: &Change, changed: &mut RoaringBitmap, stale: &mut BTreeSet<DeploymentKey>) {
        match change {
            Change::Cluster(cluster) => self.generation.cluster = cluster.generation,
            Change::Target(target) => {
                self.target(target.index).name = Some(target.info.name.clone());
                changed.insert(target.index);
            }
            Change::Environment(record) => {
                let environment = self.environments.entry(record.name.clone()).or_default();
                if environment.members != record.members {
                    *changed |= &environment.members ^ &record.members;
                    environment.members = record.members.clone();
                    stale.extend(environment.deployments.keys().map(|pipeline| (record.name.clone(), pipeline.clone())));
                }
            }
            Change::Deployment(record) => {
                stale.insert((record.environment.clone(), record.pipeline.clone()));
                self.put_deployment(Arc::clone(record));
            }
            Change::Rollout(rollout) => {
                self.rollouts.insert(rollout.id, Arc::clone(rollout));
                stale.insert((rollout.environment.clone(), rollout.pipeline.clone()));
            }
            Change::PortLease(lease) => {
                let leases = &mut self.target(lease.target).leases;
                leases
                    .retain(|kept| (&kept.pipeline, &kept.service, &kept.port) != (&lease.pipeline, &lease.service, &lease.port));
                let at = leases.partition_point(|kept| lease_order(kept) < lease_order(lease));
                leases.insert(at, lease.as_ref().clone());
                changed.insert(lease.target);
            }
            Change::Release(release) => self.forget_release(|kept, _| *kept == release.id, stale),
            Change::Artifact(artifact) => {
                self.forget_release(|_, known| known.is_none_or(|known| known.artifact == artifact.digest), stale);
            }
            Change::Removed(table, key) => self.remove(*table, key, changed, stale),
            _ => {}
        }
    }

    fn remove(&mut self, table: Table, key: &Key, changed: &mut RoaringBitmap, stale: &mut BTreeSet<DeploymentKey>) {
        match (table, key.0.as_slice()) {
            (Table::Targets, [KeyPart::Number(target)]) => {
                let target = *target as u32;
                self.target(target).name = None;
                self.forget_if_empty(target);
                changed.insert(target);
            }
            (
                Table::PortLeases,
                [KeyPart::Number(target), KeyPart::Text(pipeline), KeyPart::Text(service), KeyPart::Text(port)],
            ) => {
                let target = *target as u32;
                self.target(target).leases.retain(|kept| {
                    (kept.pipeline.as_str(), kept.service.as_str(), kept.port.as_str()) != (pipeline, service, port)
                });
                self.forget_if_empty(target);
                changed.insert(target);
            }
            (Table::Environments, [KeyPart::Text(name)]) => {
                let gone = name.parse().ok().and_then(|name: EnvironmentName| self.environments.remove(&name));
                *changed |= gone.map(|gone| gone.members).unwrap_or_default();
            }
            (Table::Deployments, [KeyPart::Text(environment), KeyPart::Text(pipeline)]) => {
                let (Ok(environment), Ok(pipeline)) = (environment.parse(), pipeline.parse()) else { return };
                let place: Option<&mut AssignedEnvironment> = self.environments.get_mut(&environment);
                let gone = place.and_then(|place| place.deployments.remove(&pipeline));
                gone.iter().flat_map(|gone| gone.sets.values()).for_each(|targets| *changed |= targets);
            }
            (Table::Artifacts, _) => self.forget_release(|_, _| true, stale),
            _ => {}
        }
    }

    fn target(&mut self, target: u32) -> &mut AssignedTarget {
        let index = target as usize;
        if self.targets.len() <= index {
            self.targets.resize(index + 1, None);
        }
        self.targets[index].get_or_insert_default()
    }

    fn forget_if_empty(&mut self, target: u32) {
        if *self.target(target) == AssignedTarget::default() {
            self.targets[target as usize] = None;
            while self.targets.last().is_some_and(Option::is_none) {
                self.targets.pop();
            }
        }
    }

    fn load_rollout<T: ReadTables>(&mut self, tables: &T, id: RolloutId) -> Result<(), TablesError> {
        if !self.rollouts.contains_key(&id)
            && let Some(rollout) = tables.get::<Rollout>(&key(id.0))?
        {
            self.rollouts.insert(id, Arc::new(rollout));
        }
        Ok(())
    }

    /// Keeps the record; its targets are assigned later.
    fn put_deployment(&mut self, record: Arc<Deployment>) {
        let environment = self.environments.entry(record.environment.clone()).or_default();
        match environment.deployments.entry(record.pipeline.clone()) {
            Entry::Occupied(mut kept) => kept.get_mut().record = record,
            Entry::Vacant(new) => {
                new.insert(AssignedDeployment { record, sets: BTreeMap::new(), releases: BTreeMap::new() });
            }
        }
    }

    /// Releases that match are read anew when their deployments, which become stale, are assigned.
    fn forget_release(
        &mut self,
        is_it: impl Fn(&ReleaseId, Option<&DesiredRelease>) -> bool,
        stale: &mut BTreeSet<DeploymentKey>,
    ) {
        for (environment, place) in &mut self.environments {
            for (pipeline, deployment) in &mut place.deployments {
                let before = deployment.releases.len();
                let description = |known: &Option<Arc<AssignedRelease>>| known.as_ref().map(Arc::clone);
                deployment.releases.retain(|id, known| !is_it(id, description(known).as_ref().map(|known| &known.release)));
                if deployment.releases.len() != before {
                    stale.insert((environment.clone(), pipeline.clone()));
                }
            }
        }
    }

    /// Assigns the targets of a deployment anew and returns those for which something changed.
    fn assign<T: ReadTables>(
        &mut self,
        tables: &T,
        (environment_name, pipeline): &DeploymentKey,
    ) -> Result<RoaringBitmap, TablesError> {
        let Some(environment) = self.environments.get_mut(environment_name) else { return Ok(RoaringBitmap::new()) };
        let Some(deployment) = environment.deployments.get_mut(pipeline) else { return Ok(RoaringBitmap::new()) };
        let rollout = deployment.record.rollout.and_then(|id| self.rollouts.get(&id));
        let sets = assigned_sets(&deployment.record, rollout.map(AsRef::as_ref), &environment.members);
        let mut changed = RoaringBitmap::new();
        for (release, targets) in &sets {
            changed |= deployment.sets.get(release).map_or_else(|| targets.clone(), |before| before ^ targets);
            if !deployment.releases.contains_key(release) {
                changed |= targets;
                deployment.releases.insert(release.clone(), describe(tables, environment_name, release)?);
            }
        }
        for (_, targets) in deployment.sets.iter().filter(|(release, _)| !sets.contains_key(release)) {
            changed |= targets;
        }
        deployment.releases.retain(|release, _| sets.contains_key(release));
        deployment.sets = sets;
        Ok(changed)
    }
}

fn lease_order(lease: &PortLease) -> (&str, &str, &str) {
    (lease.pipeline.as_str(), lease.service.as_str(), lease.port.as_str())
}

fn describe<T: ReadTables>(
    tables: &T,
    environment: &EnvironmentName,
    id: &ReleaseId,
) -> Result<Option<Arc<AssignedRelease>>, TablesError> {
    let Some(release) = tables.get::<Release>(&release_key(id))? else { return Ok(None) };
    let Some(artifact) = tables.get::<Artifact>(&key(release.artifact.hex().as_str()))? else { return Ok(None) };
    let release = DesiredRelease::new(environment, &release, &artifact);
    let hash = release.shared_hash();
    Ok(Some(Arc::new(AssignedRelease { release, hash })))
}
