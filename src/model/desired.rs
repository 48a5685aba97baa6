//! What a target should run: a function of replicated state, the same on every server. Nobody sends orders.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    cluster::Cluster,
    digest::Digest,
    fleet::{Environment, PortLease, Target},
    ids::{EnvironmentName, PipelineName, PortName, ReleaseId, ServiceName, TargetName},
    pipeline_file::{Port, Service},
    release::{Artifact, Release, release_key},
    rollout::{Deployment, Rollout},
    tables::{Key, ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
    units::ByteSize,
};

/// How new a desired state is: an agent refuses one that is older than what it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Generation {
    /// Grows with each restore or recovery of the cluster.
    pub cluster: u64,
    /// The log index up to which state was applied.
    pub index: u64,
}

/// All that a target should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredTarget {
    /// How new it is.
    pub generation: Generation,
    /// Which target.
    pub target: TargetName,
    /// What it should run, by pipeline. Pipelines that are not listed should not run.
    pub deployments: BTreeMap<PipelineName, DesiredRelease>,
}

/// One release that a target should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredRelease {
    /// Which.
    pub release: ReleaseId,
    /// In which environment.
    pub environment: EnvironmentName,
    /// What to unpack.
    pub artifact: Digest,
    /// The size of the compressed archive.
    pub artifact_size: ByteSize,
    /// The room that it takes unpacked.
    pub unpacked_size: ByteSize,
    /// The manifest's content: the pieces and their hashes.
    pub manifest: Digest,
    /// What to run.
    pub services: BTreeMap<ServiceName, DesiredService>,
}

/// One service that a target should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredService {
    /// How, with the environment's own variables over the service's.
    pub settings: Service,
    /// For each port: the one it has, or the two of which an instance takes the one that is free.
    pub ports: BTreeMap<PortName, Vec<u16>>,
}

/// What `target` is told to run of `deployment`, given the rollout at work there: none where nothing should run.
pub fn told(deployment: &Deployment, rollout: Option<&Rollout>, target: u32) -> Option<ReleaseId> {
    let Some(rollout) = rollout else {
        return held(deployment, target).map_or_else(|| deployment.stable.clone(), |(release, _)| release.clone());
    };
    if rollout.sets.reverted.contains(target) {
        return deployment.stable.clone();
    }
    if rollout.sets.changed.contains(target) {
        return Some(rollout.release.clone());
    }
    if let Some((held, _)) = held(deployment, target) {
        return held.clone();
    }
    let before = rollout.before.iter().find(|(_, targets)| targets.contains(target));
    before.map_or_else(|| deployment.stable.clone(), |(release, _)| release.clone())
}

/// What a cordoned target stays on, where that is not the stable release.
fn held(deployment: &Deployment, target: u32) -> Option<&(Option<ReleaseId>, roaring::RoaringBitmap)> {
    deployment.held.iter().find(|(_, targets)| targets.contains(target))
}

/// All that `target` should run, as of the log index `applied`.
pub fn desired<T: ReadTables>(tables: &T, target: &Target, applied: u64) -> Result<DesiredTarget, TablesError> {
    let cluster: Cluster = tables.get(&Key::all())?.unwrap_or_default();
    let leases: Vec<PortLease> = tables.scan(&Scan::prefix(key(target.index)), SCAN_RECORDS_MAX)?;
    let mut deployments = BTreeMap::new();
    for environment in tables.scan::<Environment>(&Scan::all(), SCAN_RECORDS_MAX)? {
        if !environment.members.contains(target.index) {
            continue;
        }
        let in_environment = Scan::prefix(key(environment.name.as_str()));
        for deployment in tables.scan::<Deployment>(&in_environment, SCAN_RECORDS_MAX)? {
            let rollout: Option<Rollout> = deployment.rollout.map(|id| tables.get(&key(id.0))).transpose()?.flatten();
            let Some(release) = told(&deployment, rollout.as_ref(), target.index) else { continue };
            if let Some(desired) = desired_release(tables, &environment.name, &release, &leases)? {
                deployments.entry(deployment.pipeline).or_insert(desired);
            }
        }
    }
    let generation = Generation { cluster: cluster.generation, index: applied };
    Ok(DesiredTarget { generation, target: target.facts.name.clone(), deployments })
}

fn desired_release<T: ReadTables>(
    tables: &T,
    environment: &EnvironmentName,
    id: &ReleaseId,
    leases: &[PortLease],
) -> Result<Option<DesiredRelease>, TablesError> {
    let Some(release) = tables.get::<Release>(&release_key(id))? else { return Ok(None) };
    let Some(artifact) = tables.get::<Artifact>(&key(release.artifact.hex().as_str()))? else { return Ok(None) };
    let environment_env = release.file.environment.get(environment).map(|settings| settings.env.clone()).unwrap_or_default();
    let mut services = BTreeMap::new();
    for (name, settings) in &release.file.service {
        let mut settings = settings.clone();
        settings.env.extend(environment_env.clone());
        let ports = settings.ports.iter().map(|(port, kind)| (port.clone(), ports(kind, &id.pipeline, name, port, leases)));
        let ports = ports.collect();
        services.insert(name.clone(), DesiredService { settings, ports });
    }
    Ok(Some(DesiredRelease {
        release: id.clone(),
        environment: environment.clone(),
        artifact: artifact.digest,
        artifact_size: artifact.size,
        unpacked_size: artifact.unpacked_size,
        manifest: artifact.manifest,
        services,
    }))
}

fn ports(kind: &Port, pipeline: &PipelineName, service: &ServiceName, port: &PortName, leases: &[PortLease]) -> Vec<u16> {
    match kind {
        Port::Fixed(number) => vec![*number],
        Port::Auto => {
            let lease =
                leases.iter().find(|lease| lease.pipeline == *pipeline && lease.service == *service && lease.port == *port);
            lease.map(|lease| lease.pair.to_vec()).unwrap_or_default()
        }
    }
}
