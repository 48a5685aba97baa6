//! The instances of every service that takes traffic, with a version for each service. Knows nothing of gateways.
//!
//! `swell_model::routing::derive` computes the same table from state alone: the two are kept apart so that each checks the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use roaring::RoaringBitmap;

use swell_model::{
    change::{AppliedBatch, Change},
    cluster::Cluster,
    fleet::{Environment, Target, observation::Observation},
    ids::{EnvironmentName, PipelineName, PortName, ReleaseId, RolloutId, ServiceName, TargetName},
    release::Release,
    rollout::{Deployment, OpenRollout, Rollout, assignment::Generation, plan_input::lost},
    routing::{
        derive::traffic_port,
        table::{Instance, InstanceState, RouteTable, ServiceKey, ServiceRoute, Weights},
    },
    tables::{Key, KeyPart, ReadTables, Scan, Table, TablesError, key},
};

use super::{
    changes::RecentChanges,
    instances::{Observed, PipelineInstances},
};

/// The routes of all services, as of one log index.
#[derive(Debug, Default)]
pub struct Routes {
    generation: Generation,
    members: BTreeMap<EnvironmentName, RoaringBitmap>,
    targets: BTreeMap<u32, TargetAddress>,
    lost: RoaringBitmap,
    /// The traffic port of each service by release; `None` for services that take no traffic.
    releases: BTreeMap<ReleaseId, Arc<TrafficPorts>>,
    rollouts: BTreeMap<RolloutId, KnownRollout>,
    deployments: BTreeMap<PipelineName, BTreeMap<EnvironmentName, Deployed>>,
    instances: BTreeMap<PipelineName, PipelineInstances>,
    /// Log index of the last change of each service.
    versions: BTreeMap<ServiceKey, u64>,
    recent: RecentChanges,
}

type TrafficPorts = BTreeMap<ServiceName, Option<PortName>>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct TargetAddress {
    name: TargetName,
    zone: String,
    address: IpAddr,
}

#[derive(Debug)]
struct KnownRollout {
    environment: EnvironmentName,
    release: ReleaseId,
    is_ended: bool,
}

/// What of a deployment decides which services it routes.
#[derive(Debug, Default)]
struct Deployed {
    stable: Option<ReleaseId>,
    rollout: Option<RolloutId>,
    /// Services that are routed.
    services: BTreeSet<ServiceName>,
}

/// Services and deployments that one batch touched.
#[derive(Default)]
struct Touched {
    services: BTreeSet<ServiceKey>,
    deployments: BTreeSet<(PipelineName, EnvironmentName)>,
    rollouts: BTreeSet<RolloutId>,
}

impl Routes {
    /// The routes as of the log index `applied`.
    ///
    /// # Errors
    /// When the tables cannot be read.
    pub fn from_tables<T: ReadTables>(tables: &T, applied: u64) -> Result<Self, TablesError> {
        let cluster: Cluster = tables.get(&Key::all())?.unwrap_or_default();
        let mut routes = Self {
            generation: Generation { cluster: cluster.generation, index: applied },
            lost: lost(tables)?,
            recent: RecentChanges::since(applied),
            ..Self::default()
        };
        let mut touched = Touched::default();
        tables.for_each(Scan::all(), |environment: Environment| {
            routes.members.insert(environment.name, environment.members);
        })?;
        tables.for_each(Scan::all(), |target: Target| routes.set_target(&target, &mut touched))?;
        tables.for_each(Scan::all(), |release: Release| routes.set_release(&release, &mut touched))?;
        let mut rollouts = BTreeSet::new();
        tables.for_each(Scan::all(), |open: OpenRollout| {
            rollouts.insert(open.rollout);
        })?;
        tables.for_each(Scan::all(), |deployment: Deployment| {
            rollouts.extend(deployment.rollout);
            routes.set_deployment(&deployment, &mut touched);
        })?;
        for id in rollouts {
            if let Some(rollout) = tables.get::<Rollout>(&key(id.0))? {
                routes.set_rollout(&rollout, &mut touched);
            }
        }
        tables.for_each(Scan::all(), |observation: Observation| routes.set_observation(&observation, &mut touched))?;
        routes.finish(touched);
        Ok(routes)
    }

    /// Takes in what was applied next, and returns the services whose routes may have changed: their version is the batch's index.
    /// The cost follows the number of changes, not the size of the fleet.
    pub fn update(&mut self, batch: &AppliedBatch) -> BTreeSet<ServiceKey> {
        self.generation.index = batch.index;
        let mut touched = Touched::default();
        for change in &batch.changes {
            match change {
                Change::Cluster(cluster) => self.generation.cluster = cluster.generation,
                Change::Environment(environment) => self.set_members(&environment.name, &environment.members, &mut touched),
                Change::Target(target) => self.set_target(target, &mut touched),
                Change::LostTargets(lost) => self.set_lost(&lost.targets, &mut touched),
                Change::Release(release) => self.set_release(release, &mut touched),
                Change::Rollout(rollout) => self.set_rollout(rollout, &mut touched),
                Change::Deployment(deployment) => self.set_deployment(deployment, &mut touched),
                Change::Observation(observation) => self.set_observation(observation, &mut touched),
                Change::Removed(table, key) => self.remove(*table, key, &mut touched),
                _ => {}
            }
        }
        self.finish(touched)
    }

    /// Says which targets are lost, as of the last update, and returns the services whose routes may have changed. Instances of lost
    /// targets are left out while others of their service serve.
    pub fn set_lost_targets(&mut self, lost: &RoaringBitmap) -> BTreeSet<ServiceKey> {
        let mut touched = Touched::default();
        self.set_lost(lost, &mut touched);
        self.finish(touched)
    }

    fn set_lost(&mut self, lost: &RoaringBitmap, touched: &mut Touched) {
        let moved = std::mem::replace(&mut self.lost, lost.clone()) ^ lost;
        if !moved.is_empty() {
            self.touch_targets(&moved, touched);
        }
    }

    /// State that the routes follow from.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Services that are routed.
    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.versions.keys()
    }

    /// Services that changed after the log index `index`, gone ones among them; `None` when that is too long ago to be known.
    pub fn changed_since(&self, index: u64) -> Option<BTreeSet<&ServiceKey>> {
        self.recent.after(index)
    }

    /// The route of a service with those of its instances that `choose` keeps; `None` when it is not routed. `choose` is given the
    /// instances of one release with their target numbers, by target.
    pub fn route(&self, service: &ServiceKey, choose: impl Fn(&mut Vec<(u32, Instance)>)) -> Option<ServiceRoute> {
        let version = *self.versions.get(service)?;
        let mut route = ServiceRoute { version, weights: Weights { version, ..Weights::default() }, ..ServiceRoute::default() };
        let (Some(members), Some(instances)) = (self.members.get(&service.environment), self.instances.get(&service.pipeline))
        else {
            return Some(route);
        };
        let mut releases = Vec::new();
        for (release, by_target) in instances.of(&service.service) {
            let port = self.releases.get(release).and_then(|ports| ports.get(&service.service)?.as_ref());
            let instance = |(number, observed): (u32, &Observed)| {
                let target = self.targets.get(&number)?;
                let address = SocketAddr::new(target.address, observed.port(port)?);
                let (name, zone) = (target.name.clone(), target.zone.clone());
                Some((number, Instance { target: name, zone, address, state: observed.state }))
            };
            let list: Vec<_> = by_target.filter(|(target, _)| members.contains(*target)).filter_map(instance).collect();
            releases.push((release, list));
        }
        // Silence of agents alone must not take a service away: lost targets are left out only while others serve.
        let is_present = |(target, _): &(u32, Instance)| !self.lost.contains(*target);
        let serves = |candidate: &(u32, Instance)| is_present(candidate) && candidate.1.state == InstanceState::Serving;
        let has_present = releases.iter().any(|(_, list)| list.iter().any(serves));
        for (release, mut list) in releases {
            if has_present {
                list.retain(is_present);
            }
            choose(&mut list);
            if !list.is_empty() {
                route.releases.insert(release.clone(), list.into_iter().map(|(_, instance)| instance).collect());
            }
        }
        Some(route)
    }

    /// The whole table.
    pub fn table(&self) -> RouteTable {
        let route = |service: &ServiceKey| Some((service.clone(), Arc::new(self.route(service, |_| {})?)));
        RouteTable::new(self.generation, self.services().filter_map(route))
    }

    fn set_members(&mut self, environment: &EnvironmentName, members: &RoaringBitmap, touched: &mut Touched) {
        let before = self.members.insert(environment.clone(), members.clone()).unwrap_or_default();
        let moved = before ^ members;
        if moved.is_empty() {
            return;
        }
        for (pipeline, environments) in &self.deployments {
            if environments.contains_key(environment) {
                let services = self.instances.get(pipeline).map(|instances| instances.services_on(&moved));
                for service in services.into_iter().flatten() {
                    touched.services.insert(service_key(pipeline, environment, service));
                }
            }
        }
    }

    fn set_target(&mut self, target: &Target, touched: &mut Touched) {
        let info = &target.info;
        let address = TargetAddress { name: info.name.clone(), zone: info.zone.clone(), address: info.address };
        if self.targets.get(&target.index) != Some(&address) {
            self.targets.insert(target.index, address);
            self.touch_targets(&RoaringBitmap::from([target.index]), touched);
        }
    }

    /// Touches every service that has an instance on one of `targets`.
    fn touch_targets(&self, targets: &RoaringBitmap, touched: &mut Touched) {
        for (pipeline, instances) in &self.instances {
            for service in instances.services_on(targets) {
                for environment in self.deployments.get(pipeline).into_iter().flat_map(BTreeMap::keys) {
                    touched.services.insert(service_key(pipeline, environment, service));
                }
            }
        }
    }

    fn set_release(&mut self, release: &Release, touched: &mut Touched) {
        let services = &release.file.service;
        let ports: TrafficPorts = services.iter().map(|(name, service)| (name.clone(), traffic_port(service).cloned())).collect();
        // Most releases of a pipeline have the same ports: they share them.
        let former = ReleaseId { number: release.id.number.saturating_sub(1), ..release.id.clone() };
        let shared = self.releases.get(&former).filter(|known| ***known == ports).map(Arc::clone);
        self.releases.insert(release.id.clone(), shared.unwrap_or_else(|| Arc::new(ports)));
        self.touch_release(&release.id, touched);
    }

    fn touch_release(&self, release: &ReleaseId, touched: &mut Touched) {
        // Instances may run a release of which no deployment speaks any more.
        for (pipeline, instances) in &self.instances {
            for service in instances.services_of(release) {
                for environment in self.deployments.get(pipeline).into_iter().flat_map(BTreeMap::keys) {
                    touched.services.insert(service_key(pipeline, environment, service));
                }
            }
        }
        for environment in self.deployments.get(&release.pipeline).into_iter().flat_map(BTreeMap::keys) {
            touched.deployments.insert((release.pipeline.clone(), environment.clone()));
        }
    }

    fn set_rollout(&mut self, rollout: &Rollout, touched: &mut Touched) {
        let (environment, release) = (rollout.environment.clone(), rollout.release.clone());
        touched.deployments.insert((release.pipeline.clone(), environment.clone()));
        touched.rollouts.insert(rollout.id);
        self.rollouts.insert(rollout.id, KnownRollout { environment, release, is_ended: rollout.state.is_end() });
    }

    fn set_deployment(&mut self, deployment: &Deployment, touched: &mut Touched) {
        let environments = self.deployments.entry(deployment.pipeline.clone()).or_default();
        let deployed = environments.entry(deployment.environment.clone()).or_default();
        touched.rollouts.extend(deployed.rollout);
        (deployed.stable, deployed.rollout) = (deployment.stable.clone(), deployment.rollout);
        touched.deployments.insert((deployment.pipeline.clone(), deployment.environment.clone()));
    }

    fn set_observation(&mut self, observation: &Observation, touched: &mut Touched) {
        let (pipeline, target) = (&observation.report.pipeline, observation.target);
        let instances = self.instances.entry(pipeline.clone()).or_default();
        let changed = instances.set(target, &observation.report.instances);
        self.touch_observed(pipeline, target, changed, touched);
    }

    fn touch_observed(&self, pipeline: &PipelineName, target: u32, services: BTreeSet<ServiceName>, touched: &mut Touched) {
        for environment in self.deployments.get(pipeline).into_iter().flat_map(BTreeMap::keys) {
            if self.members.get(environment).is_some_and(|members| members.contains(target)) {
                touched.services.extend(services.iter().map(|service| service_key(pipeline, environment, service)));
            }
        }
    }

    fn remove(&mut self, table: Table, key: &Key, touched: &mut Touched) {
        match (table, key.0.as_slice()) {
            (Table::Environments, [KeyPart::Text(name)]) => {
                if let Ok(name) = name.parse() {
                    self.set_members(&name, &RoaringBitmap::new(), touched);
                    self.members.remove(&name);
                }
            }
            (Table::Targets, [KeyPart::Number(number)]) => {
                let number = *number as u32;
                self.targets.remove(&number);
                self.touch_targets(&RoaringBitmap::from([number]), touched);
            }
            (Table::Releases, [KeyPart::Text(pipeline), KeyPart::Number(number)]) => {
                if let Ok(pipeline) = pipeline.parse() {
                    let release = ReleaseId { pipeline, number: *number };
                    self.releases.remove(&release);
                    self.touch_release(&release, touched);
                }
            }
            (Table::Rollouts, [KeyPart::Number(number)]) => {
                if let Some(rollout) = self.rollouts.remove(&RolloutId(*number)) {
                    touched.deployments.insert((rollout.release.pipeline, rollout.environment));
                }
            }
            (Table::Deployments, [KeyPart::Text(environment), KeyPart::Text(pipeline)]) => {
                if let (Ok(environment), Ok(pipeline)) = (environment.parse(), pipeline.parse()) {
                    self.remove_deployment(&pipeline, &environment, touched);
                }
            }
            (Table::Observations, [KeyPart::Text(pipeline), KeyPart::Number(number)]) => {
                let Some((pipeline, instances)) = self.instances.iter_mut().find(|(name, _)| name.as_str() == pipeline) else {
                    return;
                };
                let changed = instances.set(*number as u32, &[]);
                let pipeline = pipeline.clone();
                self.touch_observed(&pipeline, *number as u32, changed, touched);
            }
            _ => {}
        }
    }

    fn remove_deployment(&mut self, pipeline: &PipelineName, environment: &EnvironmentName, touched: &mut Touched) {
        let Some(environments) = self.deployments.get_mut(pipeline) else { return };
        let Some(deployed) = environments.remove(environment) else { return };
        if environments.is_empty() {
            self.deployments.remove(pipeline);
        }
        touched.rollouts.extend(deployed.rollout);
        for service in deployed.services {
            let service = service_key(pipeline, environment, &service);
            self.versions.remove(&service);
            touched.services.insert(service);
        }
    }

    /// Decides which services the touched deployments route, and gives what changed its version.
    fn finish(&mut self, mut touched: Touched) -> BTreeSet<ServiceKey> {
        let index = self.generation.index;
        for (pipeline, environment) in &touched.deployments {
            let services = self.routed_services(pipeline, environment);
            let Some(deployed) = self.deployments.get_mut(pipeline).and_then(|known| known.get_mut(environment)) else {
                continue;
            };
            for service in deployed.services.symmetric_difference(&services) {
                let key = service_key(pipeline, environment, service);
                if !services.contains(service) {
                    self.versions.remove(&key);
                } else {
                    self.versions.insert(key.clone(), index);
                }
                touched.services.insert(key);
            }
            deployed.services = services;
        }
        for id in touched.rollouts {
            self.forget_ended_rollout(id);
        }
        // What is touched and routed has changed; what is touched and not known to `versions` has gone, or never was routed.
        for service in &touched.services {
            if let Some(version) = self.versions.get_mut(service) {
                *version = index;
            }
        }
        self.recent.push(index, touched.services.iter().cloned());
        touched.services
    }

    /// Services with a traffic port of either release of the deployment: one that a release drops is routed until the rollout ends.
    fn routed_services(&self, pipeline: &PipelineName, environment: &EnvironmentName) -> BTreeSet<ServiceName> {
        let Some(deployed) = self.deployments.get(pipeline).and_then(|known| known.get(environment)) else {
            return BTreeSet::new();
        };
        let rollout = deployed.rollout.and_then(|id| self.rollouts.get(&id)).map(|rollout| &rollout.release);
        let releases = rollout.into_iter().chain(&deployed.stable);
        let ports = releases.filter_map(|release| self.releases.get(release)).flat_map(|ports| ports.iter());
        ports.filter(|(_, port)| port.is_some()).map(|(service, _)| service.clone()).collect()
    }

    fn forget_ended_rollout(&mut self, id: RolloutId) {
        let is_unused = |rollout: &KnownRollout| {
            let deployed = self.deployments.get(&rollout.release.pipeline).and_then(|known| known.get(&rollout.environment));
            rollout.is_ended && deployed.is_none_or(|deployed| deployed.rollout != Some(id))
        };
        if self.rollouts.get(&id).is_some_and(is_unused) {
            self.rollouts.remove(&id);
        }
    }
}

fn service_key(pipeline: &PipelineName, environment: &EnvironmentName, service: &ServiceName) -> ServiceKey {
    ServiceKey { pipeline: pipeline.clone(), environment: environment.clone(), service: service.clone() }
}
