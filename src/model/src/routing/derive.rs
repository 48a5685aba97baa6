//! From replicated state to the table that gateways serve by: the healthy instances of every service that has a port. Instances of lost
//! targets are left out while others of the service answer. Where none does, they stay: silence of the agents alone, such as of every
//! server's network, must not take a service away that may well answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use roaring::RoaringBitmap;

use crate::{
    cluster::Cluster,
    fleet::{
        Target,
        observation::{InstanceObserved, InstanceState, Observation},
    },
    ids::{PortName, ReleaseId, ServiceName},
    pipeline_file::Service,
    release::{Release, release_key},
    rollout::{Deployment, Rollout, assignment::Generation, plan_input::lost},
    routing::table::{Instance, InstanceState as Routed, RouteTable, ServiceKey, ServiceRoute, Weights},
    tables::{Key, ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
};

/// The route table as of the log index `applied`.
pub fn route_table<T: ReadTables>(tables: &T, applied: u64) -> Result<RouteTable, TablesError> {
    let lost = lost(tables)?;
    let mut services = Vec::new();
    for deployment in tables.scan::<Deployment>(&Scan::all(), SCAN_RECORDS_MAX)? {
        services.extend(routes_of(tables, &deployment, &lost, applied)?);
    }
    let cluster: Cluster = tables.get(&Key::all())?.unwrap_or_default();
    Ok(RouteTable::new(Generation { cluster: cluster.generation, index: applied }, services))
}

/// An instance, and whether its target is lost.
type Candidate = (Instance, bool);

type ByRelease = BTreeMap<ReleaseId, Vec<Candidate>>;

fn routes_of<T: ReadTables>(
    tables: &T,
    deployment: &Deployment,
    lost: &RoaringBitmap,
    applied: u64,
) -> Result<Vec<(ServiceKey, Arc<ServiceRoute>)>, TablesError> {
    let rollout: Option<Rollout> = deployment.rollout.map(|id| tables.get(&key(id.0))).transpose()?.flatten();
    // Services of either release are routed: one that a release drops is served until its last instance is gone.
    let present = rollout.as_ref().map(|rollout| &rollout.release).into_iter().chain(deployment.stable.as_ref());
    let mut releases = Releases::default();
    let mut names: BTreeSet<ServiceName> = BTreeSet::new();
    for id in present {
        let services = releases.of(tables, id)?.map(|release| &release.file.service).into_iter().flatten();
        names.extend(services.filter(|(_, service)| traffic_port(service).is_some()).map(|(name, _)| name.clone()));
    }
    if names.is_empty() {
        return Ok(Vec::new());
    }

    let mut instances: BTreeMap<ServiceName, ByRelease> = BTreeMap::new();
    let environment = tables.get::<crate::fleet::Environment>(&key(deployment.environment.as_str()))?;
    let members = environment.map(|environment| environment.members).unwrap_or_default();
    for observation in tables.scan::<Observation>(&Scan::prefix(key(deployment.pipeline.as_str())), SCAN_RECORDS_MAX)? {
        if !members.contains(observation.target) {
            continue;
        }
        let Some(target) = tables.get::<Target>(&key(observation.target))? else { continue };
        for instance in &observation.report.instances {
            let release = releases.of(tables, &instance.release)?;
            if let Some(route) = route(instance, &target, release) {
                let of_service = instances.entry(instance.service.clone()).or_default();
                of_service.entry(instance.release.clone()).or_default().push((route, lost.contains(observation.target)));
            }
        }
    }
    let route = |name: ServiceName| service_route(deployment, &name, instances.remove(&name).unwrap_or_default(), applied);
    Ok(names.into_iter().map(route).collect())
}

/// The releases that were read, so that each is read once.
#[derive(Default)]
struct Releases(BTreeMap<ReleaseId, Option<Release>>);

impl Releases {
    fn of<T: ReadTables>(&mut self, tables: &T, id: &ReleaseId) -> Result<Option<&Release>, TablesError> {
        if !self.0.contains_key(id) {
            self.0.insert(id.clone(), tables.get(&release_key(id))?);
        }
        Ok(self.0.get(id).and_then(Option::as_ref))
    }
}

fn route(instance: &InstanceObserved, target: &Target, release: Option<&Release>) -> Option<Instance> {
    let state = match instance.state {
        InstanceState::Serving => Routed::Serving,
        InstanceState::Draining => Routed::Draining,
        InstanceState::Starting | InstanceState::Unhealthy => return None,
    };
    let settings = release.and_then(|release| release.file.service.get(&instance.service));
    let named = settings.and_then(traffic_port).and_then(|port| instance.ports.get(port));
    // Where its release is not known any more, it may still have only one.
    let port = named.or_else(|| instance.ports.values().next())?;
    let address = SocketAddr::new(target.info.address, *port);
    Some(Instance { target: target.info.name.clone(), zone: target.info.zone.clone(), address, state })
}

/// The instances that gateways route to: without those of lost targets, where others of the service serve.
fn reachable(by_release: ByRelease) -> BTreeMap<ReleaseId, Vec<Instance>> {
    let answers = |(instance, is_lost): &Candidate| !is_lost && instance.state == Routed::Serving;
    let without_lost = by_release.values().flatten().any(answers);
    let kept = |(release, candidates): (ReleaseId, Vec<Candidate>)| {
        let kept = candidates.into_iter().filter(|(_, is_lost)| !(without_lost && *is_lost));
        let instances: Vec<Instance> = kept.map(|(instance, _)| instance).collect();
        (!instances.is_empty()).then_some((release, instances))
    };
    by_release.into_iter().filter_map(kept).collect()
}

fn service_route(
    deployment: &Deployment,
    service: &ServiceName,
    by_release: ByRelease,
    applied: u64,
) -> (ServiceKey, Arc<ServiceRoute>) {
    let releases = reachable(by_release);
    let key = ServiceKey {
        pipeline: deployment.pipeline.clone(),
        environment: deployment.environment.clone(),
        service: service.clone(),
    };
    let weights = Weights { version: applied, ..Weights::default() };
    (key, Arc::new(ServiceRoute { version: applied, hosts: Vec::new(), releases, weights }))
}

/// The port on which a service takes traffic: the one named `http`, else the one that its health is asked on, else its only one.
pub fn traffic_port(service: &Service) -> Option<&PortName> {
    let http = service.ports.keys().find(|port| port.as_str() == "http");
    http.or(service.health.port.as_ref()).or_else(|| service.ports.keys().next().filter(|_| service.ports.len() == 1))
}
