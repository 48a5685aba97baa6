//! The instances that targets report of one pipeline, by service and release. Knows nothing of environments or addresses.

use std::collections::{BTreeMap, BTreeSet};

use roaring::RoaringBitmap;

use swell_model::{
    fleet::observation::{InstanceObserved, InstanceState as Reported},
    ids::{PortName, ReleaseId, ServiceName},
    routing::table::InstanceState,
};

/// An instance as its target reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    ports: Box<[(PortName, u16)]>,
    pub state: InstanceState,
}

impl Observed {
    /// The port named `traffic`; its first one where its release is not known or has another name for it.
    pub fn port(&self, traffic: Option<&PortName>) -> Option<u16> {
        let named = self.ports.iter().find(|(name, _)| Some(name) == traffic);
        named.or_else(|| self.ports.first()).map(|(_, port)| *port)
    }
}

/// By target number, and by their place in the target's report.
type ByTarget = BTreeMap<(u32, u32), Observed>;

#[derive(Debug, Default)]
pub struct PipelineInstances(BTreeMap<ServiceName, ServiceInstances>);

#[derive(Debug, Default)]
struct ServiceInstances {
    releases: BTreeMap<ReleaseId, ByTarget>,
    /// Targets that have an instance of any release.
    targets: RoaringBitmap,
}

impl PipelineInstances {
    /// Replaces the instances of one target, and returns the services whose instances changed.
    pub fn set(&mut self, target: u32, instances: &[InstanceObserved]) -> BTreeSet<ServiceName> {
        let mut reported: BTreeMap<&ServiceName, BTreeMap<&ReleaseId, Vec<Observed>>> = BTreeMap::new();
        for instance in instances {
            let state = match instance.state {
                Reported::Serving => InstanceState::Serving,
                Reported::Draining => InstanceState::Draining,
                Reported::Starting | Reported::Unhealthy => continue,
            };
            let ports = instance.ports.iter().map(|(name, port)| (name.clone(), *port)).collect();
            let of_release = reported.entry(&instance.service).or_default().entry(&instance.release).or_default();
            of_release.push(Observed { ports, state });
        }
        let mut changed = BTreeSet::new();
        for (name, service) in self.0.iter_mut().filter(|(_, service)| service.targets.contains(target)) {
            let now = reported.remove(name).unwrap_or_default();
            if service.set(target, now) {
                changed.insert(name.clone());
            }
        }
        for (name, now) in reported {
            self.0.entry(name.clone()).or_default().set(target, now);
            changed.insert(name.clone());
        }
        self.0.retain(|_, service| !service.releases.is_empty());
        changed
    }

    /// Services with an instance on one of `targets`.
    pub fn services_on(&self, targets: &RoaringBitmap) -> impl Iterator<Item = &ServiceName> {
        self.0.iter().filter(|(_, service)| !service.targets.is_disjoint(targets)).map(|(name, _)| name)
    }

    /// Services with an instance of `release`.
    pub fn services_of(&self, release: &ReleaseId) -> impl Iterator<Item = &ServiceName> {
        self.0.iter().filter(|(_, service)| service.releases.contains_key(release)).map(|(name, _)| name)
    }

    /// The instances of a service, by release, each release's by target number.
    pub fn of(&self, service: &ServiceName) -> impl Iterator<Item = (&ReleaseId, impl Iterator<Item = (u32, &Observed)>)> {
        let releases = self.0.get(service).into_iter().flat_map(|service| &service.releases);
        releases.map(|(release, by_target)| (release, by_target.iter().map(|((target, _), observed)| (*target, observed))))
    }
}

impl ServiceInstances {
    /// Replaces the instances of one target, and returns whether that changed anything.
    fn set(&mut self, target: u32, mut now: BTreeMap<&ReleaseId, Vec<Observed>>) -> bool {
        let has_instances = !now.is_empty();
        let mut is_changed = false;
        for (release, by_target) in &mut self.releases {
            let now = now.remove(release).unwrap_or_default();
            let before = by_target.range((target, 0)..=(target, u32::MAX));
            if before.clone().map(|(_, observed)| observed).eq(&now) {
                continue;
            }
            is_changed = true;
            let keys: Vec<(u32, u32)> = before.map(|(key, _)| *key).collect();
            keys.iter().for_each(|key| drop(by_target.remove(key)));
            by_target.extend((0..).zip(now).map(|(place, observed)| ((target, place), observed)));
        }
        for (release, now) in now {
            is_changed = true;
            self.releases.insert(release.clone(), (0..).zip(now).map(|(place, observed)| ((target, place), observed)).collect());
        }
        self.releases.retain(|_, by_target| !by_target.is_empty());
        if has_instances {
            self.targets.insert(target)
        } else {
            self.targets.remove(target)
        };
        is_changed
    }
}
