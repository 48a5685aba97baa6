//! What a target should run: a function of replicated state, the same on every server. Nobody sends orders.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
};

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::{
    cluster::Cluster,
    digest::Digest,
    event::{Event, EventKind, Subject},
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

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.cluster, self.index)
    }
}

/// All that a target should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredTarget {
    pub generation: Generation,
    pub target: TargetName,
    /// What it should run, by pipeline. Pipelines that are not listed should not run.
    pub deployments: BTreeMap<PipelineName, DesiredRelease>,
}

impl DesiredTarget {
    /// What distinguishes one desired state from another, whatever its generation. Made of the releases' hashes, so that a server needs to
    /// hash a release only once for all of its targets.
    pub fn hash(&self) -> Digest {
        let mut hasher = DesiredHasher::default();
        for (pipeline, release) in &self.deployments {
            hasher.add(pipeline, &release.shared_hash(), release.ports());
        }
        hasher.finish()
    }
}

/// Computes [`DesiredTarget::hash`] without the desired state itself.
#[derive(Debug, Default)]
pub struct DesiredHasher(Vec<u8>);

impl DesiredHasher {
    /// Adds the next pipeline, in the pipelines' order: its release's [`DesiredRelease::shared_hash`] and its ports on the target.
    pub fn add<'p>(
        &mut self,
        pipeline: &PipelineName,
        release: &Digest,
        ports: impl IntoIterator<Item = (&'p ServiceName, &'p PortName, &'p [u16])>,
    ) {
        self.text(pipeline.as_str());
        self.0.extend(release.0);
        for (service, port, numbers) in ports {
            self.text(service.as_str());
            self.text(port.as_str());
            self.0.push(numbers.len() as u8);
            self.0.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
        }
        // No name is empty: the next pipeline begins.
        self.0.push(0);
    }

    pub fn finish(self) -> Digest {
        Digest::of(&self.0)
    }

    fn text(&mut self, text: &str) {
        // Names have at most 63 bytes.
        self.0.push(text.len() as u8);
        self.0.extend(text.as_bytes());
    }
}

/// One release that a target should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredRelease {
    pub release: ReleaseId,
    pub environment: EnvironmentName,
    /// The archive to unpack.
    pub artifact: Digest,
    /// The size of the compressed archive.
    pub artifact_size: ByteSize,
    /// The disk space that it takes unpacked.
    pub unpacked_size: ByteSize,
    /// The manifest's content: the pieces and their hashes.
    pub manifest: Digest,
    pub services: BTreeMap<ServiceName, DesiredService>,
}

impl DesiredRelease {
    /// `release` as it runs in `environment`, without the ports of any target.
    pub fn new(environment: &EnvironmentName, release: &Release, artifact: &Artifact) -> Self {
        let environment_env = release.file.environment.get(environment).map(|settings| settings.env.clone()).unwrap_or_default();
        let mut services = BTreeMap::new();
        for (name, settings) in &release.file.service {
            let mut settings = settings.clone();
            settings.env.extend(environment_env.clone());
            services.insert(name.clone(), DesiredService { settings, ports: BTreeMap::new() });
        }
        Self {
            release: release.id.clone(),
            environment: environment.clone(),
            artifact: artifact.digest,
            artifact_size: artifact.size,
            unpacked_size: artifact.unpacked_size,
            manifest: artifact.manifest,
            services,
        }
    }

    /// What is the same on every target: SHA-256 of the MessagePack of the release without ports.
    pub fn shared_hash(&self) -> Digest {
        let mut shared = self.clone();
        shared.services.values_mut().for_each(|service| service.ports.clear());
        // A struct of plain fields always serializes.
        Digest::of(&rmp_serde::to_vec_named(&shared).unwrap_or_default())
    }

    /// The ports that were chosen for a target, in order.
    pub fn ports(&self) -> impl Iterator<Item = (&ServiceName, &PortName, &[u16])> {
        self.services
            .iter()
            .flat_map(|(service, desired)| desired.ports.iter().map(move |(port, numbers)| (service, port, numbers.as_slice())))
    }

    /// The ports that the release has on the target that keeps `leases`, in the order of [`DesiredRelease::ports`].
    pub fn ports_with<'r>(&'r self, leases: &'r [PortLease]) -> impl Iterator<Item = (&'r ServiceName, &'r PortName, Vec<u16>)> {
        let ports = self.services.iter().flat_map(|(name, service)| service.settings.ports.iter().map(move |port| (name, port)));
        ports.map(move |(service, (port, kind))| {
            let is_this =
                |lease: &&PortLease| lease.pipeline == self.release.pipeline && lease.service == *service && lease.port == *port;
            let numbers = match kind {
                Port::Fixed(number) => vec![*number],
                Port::Auto => leases.iter().find(is_this).map(|lease| lease.pair.to_vec()).unwrap_or_default(),
            };
            (service, port, numbers)
        })
    }

    /// The release on the target that keeps `leases`.
    pub fn with_ports(&self, leases: &[PortLease]) -> Self {
        let mut release = self.clone();
        for (service, port, numbers) in self.ports_with(leases) {
            if let Some(service) = release.services.get_mut(service) {
                service.ports.insert(port.clone(), numbers);
            }
        }
        release
    }
}

/// One service that a target should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredService {
    /// The service's settings, with the environment's own variables over the service's.
    pub settings: Service,
    /// For each port: the one it has, or the two of which an instance takes the one that is free.
    pub ports: BTreeMap<PortName, Vec<u16>>,
}

/// The release of `deployment` that `target` is assigned, given the rollout that changes targets there; none where nothing should run.
pub fn assigned_release(deployment: &Deployment, rollout: Option<&Rollout>, target: u32) -> Option<ReleaseId> {
    let retained = deployment.retained.iter().find(|(_, targets)| targets.contains(target)).map(|(release, _)| release);
    let Some(rollout) = rollout else { return retained.unwrap_or(&deployment.stable).clone() };
    if rollout.sets.reverted.contains(target) {
        return deployment.stable.clone();
    }
    if rollout.sets.changed.contains(target) {
        return Some(rollout.release.clone());
    }
    let before = || rollout.before.iter().find(|(_, targets)| targets.contains(target)).map(|(release, _)| release);
    retained.or_else(before).unwrap_or(&deployment.stable).clone()
}

/// [`assigned_release`] of all `members` at once; those that should run nothing are in none of the sets.
pub fn assigned_sets(
    deployment: &Deployment,
    rollout: Option<&Rollout>,
    members: &RoaringBitmap,
) -> BTreeMap<ReleaseId, RoaringBitmap> {
    let mut sets: BTreeMap<ReleaseId, RoaringBitmap> = BTreeMap::new();
    let mut left = members.clone();
    let mut assign = |release: Option<&ReleaseId>, targets: &RoaringBitmap| {
        let targets = &left & targets;
        left -= &targets;
        if let Some(release) = release.filter(|_| !targets.is_empty()) {
            *sets.entry(release.clone()).or_default() |= targets;
        }
    };
    if let Some(rollout) = rollout {
        assign(deployment.stable.as_ref(), &rollout.sets.reverted);
        assign(Some(&rollout.release), &rollout.sets.changed);
    }
    for (release, targets) in deployment.retained.iter().chain(rollout.iter().flat_map(|rollout| &rollout.before)) {
        assign(release.as_ref(), targets);
    }
    assign(deployment.stable.as_ref(), members);
    sets
}

/// All that `target` should run, as of the log index `applied`.
pub fn desired<T: ReadTables>(tables: &T, target: &Target, applied: u64) -> Result<DesiredTarget, TablesError> {
    DesiredReader::new(tables, applied)?.of(target)
}

/// Reads what many targets should run: what they share is read once.
pub struct DesiredReader<'t, T> {
    tables: &'t T,
    generation: Generation,
    environments: Vec<InEnvironment>,
    /// Releases as they run in an environment, without the ports that each target chooses.
    releases: BTreeMap<(EnvironmentName, ReleaseId), Option<DesiredRelease>>,
}

struct InEnvironment {
    environment: Environment,
    /// What it has, and the rollout at work there; none before a target needs it.
    deployments: Option<Vec<(Deployment, Option<Rollout>)>>,
}

impl<'t, T: ReadTables> DesiredReader<'t, T> {
    /// A reader of state as of the log index `applied`.
    pub fn new(tables: &'t T, applied: u64) -> Result<Self, TablesError> {
        let cluster: Cluster = tables.get(&Key::all())?.unwrap_or_default();
        let generation = Generation { cluster: cluster.generation, index: applied };
        let environments: Vec<Environment> = tables.scan(&Scan::all(), SCAN_RECORDS_MAX)?;
        let environments = environments.into_iter().map(|environment| InEnvironment { environment, deployments: None }).collect();
        Ok(Self { tables, generation, environments, releases: BTreeMap::new() })
    }

    /// All that `target` should run.
    pub fn of(&mut self, target: &Target) -> Result<DesiredTarget, TablesError> {
        let leases: Vec<PortLease> = self.tables.scan(&Scan::prefix(key(target.index)), SCAN_RECORDS_MAX)?;
        let mut deployments = BTreeMap::new();
        for place in self.environments.iter_mut().filter(|place| place.environment.members.contains(target.index)) {
            let name = &place.environment.name;
            let there = match &mut place.deployments {
                Some(there) => there,
                none => none.insert(deployments_in(self.tables, name)?),
            };
            for (deployment, rollout) in there {
                let Some(id) = assigned_release(deployment, rollout.as_ref(), target.index) else { continue };
                let release = match self.releases.entry((name.clone(), id)) {
                    Entry::Occupied(kept) => kept.into_mut(),
                    Entry::Vacant(new) => {
                        let release = desired_release(self.tables, name, &new.key().1)?;
                        new.insert(release)
                    }
                };
                if let Some(release) = release {
                    deployments.entry(deployment.pipeline.clone()).or_insert_with(|| release.with_ports(&leases));
                }
            }
        }
        Ok(DesiredTarget { generation: self.generation, target: target.info.name.clone(), deployments })
    }
}

fn deployments_in<T: ReadTables>(
    tables: &T,
    environment: &EnvironmentName,
) -> Result<Vec<(Deployment, Option<Rollout>)>, TablesError> {
    let deployments: Vec<Deployment> = tables.scan(&Scan::prefix(key(environment.as_str())), SCAN_RECORDS_MAX)?;
    let with_rollout = |deployment: Deployment| {
        let rollout: Option<Rollout> = deployment.rollout.map(|id| tables.get(&key(id.0))).transpose()?.flatten();
        Ok((deployment, rollout))
    };
    deployments.into_iter().map(with_rollout).collect()
}

fn desired_release<T: ReadTables>(
    tables: &T,
    environment: &EnvironmentName,
    id: &ReleaseId,
) -> Result<Option<DesiredRelease>, TablesError> {
    let Some(release) = tables.get::<Release>(&release_key(id))? else { return Ok(None) };
    let Some(artifact) = tables.get::<Artifact>(&key(release.artifact.hex().as_str()))? else { return Ok(None) };
    Ok(Some(DesiredRelease::new(environment, &release, &artifact)))
}

/// Whose desired state an event may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concerned {
    /// Nobody's.
    Nobody,
    /// This target's.
    Target(TargetName),
    /// Any target's.
    Everyone,
}

/// Whose desired state `event` may have changed.
pub fn concerned(event: &Event) -> Concerned {
    use EventKind::{EnvironmentCreated, RolloutTargetsChanged, RolloutTargetsReverted};
    match (&event.subject, event.kind) {
        (Subject::Target(name), _) => Concerned::Target(name.clone()),
        (_, EnvironmentCreated | RolloutTargetsChanged | RolloutTargetsReverted) => Concerned::Everyone,
        (_, kind) if kind.is_rollout_transition() => Concerned::Everyone,
        _ => Concerned::Nobody,
    }
}
