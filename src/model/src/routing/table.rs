//! Where requests go: the table that servers derive from state and gateways route by.
//! Pure data and pure rules; knows nothing of sockets, of how a table is derived, or of how a request is forwarded.

use std::{collections::BTreeMap, fmt, net::SocketAddr, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    digest::Digest,
    ids::{EnvironmentName, IdError, PipelineName, ReleaseId, ServiceName, TargetName},
    rollout::assignment::Generation,
    units::BasisPoints,
};

/// A service of a pipeline in an environment: what a gateway routes to. Written `shop/production/web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    pub pipeline: PipelineName,
    pub environment: EnvironmentName,
    pub service: ServiceName,
}

impl ServiceKey {
    /// Host name under which every gateway serves this service, by itself or as the beginning of a longer one:
    /// `web.shop.production`, so also `web.shop.production.example.com`.
    pub fn host_prefix(&self) -> String {
        format!("{}.{}.{}", self.service, self.pipeline, self.environment)
    }
}

impl FromStr for ServiceKey {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError { text: text.to_owned(), expected: "a service, written `PIPELINE/ENVIRONMENT/SERVICE`" };
        let mut parts = text.split('/');
        let (Some(pipeline), Some(environment), Some(service), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(error());
        };
        Ok(Self {
            pipeline: pipeline.parse().map_err(|_| error())?,
            environment: environment.parse().map_err(|_| error())?,
            service: service.parse().map_err(|_| error())?,
        })
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.pipeline, self.environment, self.service)
    }
}

impl Serialize for ServiceKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Everything that a gateway must know to route. Immutable once shared; its services are shared between versions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "TableParts")]
pub struct RouteTable {
    /// State that the table follows from; the default before any.
    pub generation: Generation,
    services: BTreeMap<ServiceKey, Arc<ServiceRoute>>,
    #[serde(skip_serializing)]
    hash: RoutesHash,
}

#[derive(Deserialize)]
struct TableParts {
    generation: Generation,
    services: BTreeMap<ServiceKey, Arc<ServiceRoute>>,
}

impl From<TableParts> for RouteTable {
    fn from(parts: TableParts) -> Self {
        Self::new(parts.generation, parts.services)
    }
}

impl RouteTable {
    /// A table of these services.
    pub fn new(generation: Generation, services: impl IntoIterator<Item = (ServiceKey, Arc<ServiceRoute>)>) -> Self {
        let mut table = Self { generation, ..Self::default() };
        services.into_iter().for_each(|(key, route)| table.insert(key, route));
        table
    }

    /// Services by name.
    pub fn services(&self) -> &BTreeMap<ServiceKey, Arc<ServiceRoute>> {
        &self.services
    }

    /// What distinguishes the routes from others, whatever their generation.
    pub fn hash(&self) -> RoutesHash {
        self.hash
    }

    /// Adds a service or replaces it.
    pub fn insert(&mut self, key: ServiceKey, route: Arc<ServiceRoute>) {
        self.remove(&key);
        self.hash.add(route.hash(&key));
        self.services.insert(key, route);
    }

    /// Removes a service, if it is there.
    pub fn remove(&mut self, key: &ServiceKey) {
        if let Some(route) = self.services.remove(key) {
            self.hash.remove(route.hash(key));
        }
    }
}

/// A sum over the services of a table, by which gateway and server tell whether they hold the same routes. Order does not matter, and
/// one service is replaced in constant time. Guards against loss, not against forgery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RoutesHash(u128);

impl RoutesHash {
    /// Counts a service in.
    pub fn add(&mut self, service: ServiceHash) {
        self.0 = self.0.wrapping_add(service.instances).wrapping_add(service.weights);
    }

    /// Takes a service, which was counted in, out again.
    pub fn remove(&mut self, service: ServiceHash) {
        self.0 = self.0.wrapping_sub(service.instances).wrapping_sub(service.weights);
    }
}

/// Hashes of one service's route: its weights apart from everything else. The first 16 bytes of SHA-256 of the MessagePack form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceHash {
    pub instances: u128,
    pub weights: u128,
}

/// The way to one service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceRoute {
    /// Log index at which the server saw the instances or host names change last, for people: servers may differ in it.
    pub version: u64,
    /// Host names that lead to it, besides [`ServiceKey::host_prefix`]: whole names, lower case, without a port.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Instances by release.
    pub releases: BTreeMap<ReleaseId, Vec<Instance>>,
    pub weights: Weights,
}

impl ServiceRoute {
    /// What distinguishes this route of `key` from others, without its versions.
    pub fn hash(&self, key: &ServiceKey) -> ServiceHash {
        ServiceHash {
            instances: hash_of(&("instances", key, &self.hosts, &self.releases)),
            weights: hash_of(&("weights", key, &self.weights.shares)),
        }
    }
}

fn hash_of(value: &impl Serialize) -> u128 {
    // Plain fields always serialize.
    let digest = Digest::of(&rmp_serde::to_vec(value).unwrap_or_default()).0;
    u128::from_le_bytes(std::array::from_fn(|byte| digest[byte]))
}

/// How traffic is split between the releases of a service. Apart from the instances, so that a split changes without sending those.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Weights {
    /// Log index at which the server saw the shares change last.
    pub version: u64,
    /// Share of each release. Zero gets no traffic; any other share counts as all until traffic is split by user.
    pub shares: BTreeMap<ReleaseId, BasisPoints>,
}

impl Weights {
    /// Share of `release`: all of the traffic that its instances attract, unless another is set.
    pub fn share(&self, release: &ReleaseId) -> BasisPoints {
        self.shares.get(release).copied().unwrap_or(BasisPoints::ALL)
    }
}

/// A process that serves requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub target: TargetName,
    /// Zone of the target; a gateway prefers instances of its own.
    pub zone: String,
    pub address: SocketAddr,
    pub state: InstanceState,
}

/// Whether an instance takes new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Takes new requests.
    Serving,
    /// Gets no new requests and finishes those in flight.
    Draining,
}

/// Names under which `host` may be known, most specific first: itself, then without its last label, and so on.
/// `web.shop.production.example.com` ends with `web`; a service is looked up under each in turn.
pub fn host_candidates(host: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(host), |name| name.rsplit_once('.').map(|(rest, _)| rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn table(index: u64) -> RouteTable {
        let instance = Instance {
            target: "host-1".parse().unwrap(),
            zone: "a".into(),
            address: "10.0.0.1:8080".parse().unwrap(),
            state: InstanceState::Draining,
        };
        let releases = BTreeMap::from([("shop@3".parse().unwrap(), vec![instance])]);
        let route = ServiceRoute { version: 3, hosts: vec!["shop.example".into()], releases, weights: Weights::default() };
        RouteTable::new(Generation { cluster: 1, index }, [("shop/production/web".parse().unwrap(), Arc::new(route))])
    }

    #[test]
    fn table_is_equal_after_messagepack_and_json() {
        let bytes = rmp_serde::to_vec_named(&table(7)).unwrap();
        assert_eq!(rmp_serde::from_slice::<RouteTable>(&bytes).unwrap(), table(7));
        let json = serde_json::to_string(&table(7)).unwrap();
        assert!(json.contains(r#""address":"10.0.0.1:8080","state":"draining""#), "{json}");
        assert_eq!(serde_json::from_str::<RouteTable>(&json).unwrap(), table(7));
    }

    #[test]
    fn table_hash_follows_routes_and_not_generations_or_versions() {
        let (mut changed, key) = (table(8), "shop/production/web".parse().unwrap());
        let route = ServiceRoute::clone(&changed.services()[&key]);
        changed.insert(key.clone(), Arc::new(ServiceRoute { version: 8, ..route.clone() }));
        assert_eq!(changed.hash(), table(7).hash());
        let weights = Weights { version: 8, shares: BTreeMap::from([("shop@3".parse().unwrap(), BasisPoints(0))]) };
        changed.insert(key.clone(), Arc::new(ServiceRoute { weights, ..route.clone() }));
        assert_ne!(changed.hash(), table(7).hash());
        changed.insert(key.clone(), Arc::new(ServiceRoute { hosts: Vec::new(), ..route }));
        assert_ne!(changed.hash(), table(7).hash());
        changed.remove(&key);
        assert_eq!(changed.hash(), RoutesHash::default());
    }

    #[test]
    fn service_key_is_written_with_slashes() {
        let key: ServiceKey = "shop/production/web".parse().unwrap();
        assert_eq!((key.to_string().as_str(), key.host_prefix().as_str()), ("shop/production/web", "web.shop.production"));
        for bad in ["", "shop", "shop/production", "shop/production/web/x", "shop//web", "Shop/production/web"] {
            assert!(bad.parse::<ServiceKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn host_candidates_go_from_whole_host_to_first_label() {
        assert_eq!(
            host_candidates("web.shop.prod.lan").collect::<Vec<_>>(),
            ["web.shop.prod.lan", "web.shop.prod", "web.shop", "web"]
        );
    }
}
