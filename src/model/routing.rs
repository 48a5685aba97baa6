//! From replicated state to the table that gateways serve by: the healthy instances of every service that has a port.

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    fleet::Target,
    ids::{PortName, ReleaseId, ServiceName},
    observation::{InstanceState, Observation},
    pipeline_file::Service,
    release::{Release, release_key},
    rollout::{Deployment, Rollout},
    routes::{Instance, InstanceState as Routed, ReleaseRoute, RouteTable, ServiceKey, ServiceRoute},
    tables::{ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
    units::BasisPoints,
};

/// The route table as of the log index `applied`.
pub fn route_table<T: ReadTables>(tables: &T, applied: u64) -> Result<RouteTable, TablesError> {
    let mut services = Vec::new();
    for deployment in tables.scan::<Deployment>(&Scan::all(), SCAN_RECORDS_MAX)? {
        services.extend(routes_of(tables, &deployment)?);
    }
    Ok(RouteTable { generation: applied, services })
}

type ByRelease = BTreeMap<ReleaseId, Vec<Instance>>;

fn routes_of<T: ReadTables>(tables: &T, deployment: &Deployment) -> Result<Vec<ServiceRoute>, TablesError> {
    let rollout: Option<Rollout> = deployment.rollout.map(|id| tables.get(&key(id.0))).transpose()?.flatten();
    let newest = rollout.as_ref().map(|rollout| &rollout.release).or(deployment.stable.as_ref());
    let Some(newest) = newest else { return Ok(Vec::new()) };
    let Some(release) = tables.get::<Release>(&release_key(newest))? else { return Ok(Vec::new()) };

    let mut instances: BTreeMap<ServiceName, ByRelease> = BTreeMap::new();
    let environment = tables.get::<super::fleet::Environment>(&key(deployment.environment.as_str()))?;
    let members = environment.map(|environment| environment.members).unwrap_or_default();
    for observation in tables.scan::<Observation>(&Scan::prefix(key(deployment.pipeline.as_str())), SCAN_RECORDS_MAX)? {
        if !members.contains(observation.target) {
            continue;
        }
        let Some(target) = tables.get::<Target>(&key(observation.target))? else { continue };
        for (service, by) in instances_of(&observation, &target, &release) {
            instances.entry(service).or_default().entry(by.0).or_default().push(by.1);
        }
    }
    let with_port = release.file.service.iter().filter(|(_, service)| traffic_port(service).is_some());
    Ok(with_port.map(|(name, _)| service_route(deployment, name, instances.remove(name).unwrap_or_default())).collect())
}

fn instances_of(observation: &Observation, target: &Target, newest: &Release) -> Vec<(ServiceName, (ReleaseId, Instance))> {
    let mut routed = Vec::new();
    for instance in &observation.report.instances {
        let state = match instance.state {
            InstanceState::Serving => Routed::Serving,
            InstanceState::Draining => Routed::Draining,
            InstanceState::Starting | InstanceState::Unhealthy => continue,
        };
        let settings = newest.file.service.get(&instance.service);
        let named = settings.and_then(traffic_port).and_then(|port| instance.ports.get(port));
        // A port that the newest release no longer names: the instance of the former one still has its only port.
        let Some(port) = named.or_else(|| instance.ports.values().next()) else { continue };
        let address = SocketAddr::new(target.facts.address, *port);
        let (zone, name) = (target.facts.zone.clone(), target.facts.name.clone());
        let route = Instance { target: name, zone, address, state };
        routed.push((instance.service.clone(), (instance.release.clone(), route)));
    }
    routed
}

fn service_route(deployment: &Deployment, service: &ServiceName, by_release: ByRelease) -> ServiceRoute {
    let releases =
        by_release.into_iter().map(|(release, instances)| ReleaseRoute { release, weight: BasisPoints::ALL, instances });
    let service = ServiceKey {
        pipeline: deployment.pipeline.clone(),
        environment: deployment.environment.clone(),
        service: service.clone(),
    };
    ServiceRoute { service, hosts: Vec::new(), releases: releases.collect() }
}

/// The port on which a service takes traffic: the one named `http`, else the one that its health is asked on, else its only one.
pub fn traffic_port(service: &Service) -> Option<&PortName> {
    let http = service.ports.keys().find(|port| port.as_str() == "http");
    http.or(service.health.port.as_ref()).or_else(|| service.ports.keys().next().filter(|_| service.ports.len() == 1))
}
