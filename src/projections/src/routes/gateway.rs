//! What one gateway holds of the routes, and what to send it next: one update at a time, so that a slow gateway gets one change that
//! takes in all that happened meanwhile. Knows nothing of connections or clocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use swell_model::{
    digest::Digest,
    rollout::assignment::Generation,
    routing::{
        messages::{GatewayHello, ServedServices},
        table::{Instance, InstanceState, RoutesHash, ServiceHash, ServiceKey, ServiceRoute},
        update::RouteUpdate,
    },
};

use super::projection::Routes;

/// The most instances of one release of a service that one gateway is sent. Each gateway gets others, so together they use all.
pub const INSTANCES_PER_RELEASE_MAX: usize = 200;

/// Of these, how many of other zones than the gateway's there are at most while its own has enough: they take over when it fails.
const OTHER_ZONES_MAX: usize = 50;

/// What to do next for a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The gateway holds what it should, or has not acknowledged the last update, or holds newer routes than are known here.
    Wait,
    /// Send this update.
    Send(RouteUpdate),
    /// The gateway follows a later generation of the cluster: this server must not send it anything.
    Stale,
}

/// State of one gateway's routes.
#[derive(Debug)]
pub struct GatewayRoutes {
    serves: ServedServices,
    subset: Subset,
    /// Generation and hash of the table that the gateway said it holds; `None` once it is known what that is.
    claimed: Option<(Generation, RoutesHash)>,
    /// Hashes of the services that the gateway holds once it took everything that was sent.
    services: BTreeMap<ServiceKey, ServiceHash>,
    hash: RoutesHash,
    /// Generation of that table.
    sent: Generation,
    is_acknowledged: bool,
    /// State as of which `services` were compared with the routes.
    compared: Generation,
    obeyed: Generation,
}

impl GatewayRoutes {
    /// A gateway whose session begins with `hello`.
    pub fn new(hello: &GatewayHello) -> Self {
        Self {
            serves: hello.serves.clone(),
            subset: Subset::new(&hello.gateway.0, hello.zone.clone()),
            claimed: Some((hello.generation, hello.hash)),
            services: BTreeMap::new(),
            hash: RoutesHash::default(),
            sent: hello.generation,
            is_acknowledged: true,
            compared: Generation::default(),
            obeyed: hello.generation,
        }
    }

    /// Compares what the gateway holds with `routes`.
    pub fn next(&mut self, routes: &Routes) -> Step {
        let now = routes.generation();
        if now.cluster < self.sent.cluster {
            return Step::Stale;
        }
        if !self.is_acknowledged || now < self.sent {
            return Step::Wait;
        }
        let step = match self.claimed {
            Some(claimed) => self.begin(routes, claimed),
            None => self.compare(routes),
        };
        self.compared = now;
        if step == Step::Wait {
            self.obeyed = now;
        }
        step
    }

    /// The gateway routes by the table of this generation.
    pub fn acknowledge(&mut self, generation: Generation) {
        if generation == self.sent && !self.is_acknowledged {
            self.is_acknowledged = true;
            self.obeyed = self.compared;
        }
    }

    /// The gateway asks for the whole table.
    pub fn start_over(&mut self) {
        // No table has this generation, so that the hash decides nothing.
        self.claimed = Some((Generation::default(), RoutesHash::default()));
        self.is_acknowledged = true;
    }

    /// Whether the gateway owes an acknowledgement.
    pub fn is_unacknowledged(&self) -> bool {
        !self.is_acknowledged
    }

    /// State up to which the gateway obeys: changes of it that do not concern the gateway count as obeyed.
    pub fn obeyed(&self) -> Generation {
        self.obeyed
    }

    /// Finds out whether the gateway holds the present table; if not, it gets the whole of it.
    fn begin(&mut self, routes: &Routes, (generation, claimed): (Generation, RoutesHash)) -> Step {
        let mut services = BTreeMap::new();
        (self.services, self.hash) = (BTreeMap::new(), RoutesHash::default());
        for key in routes.services().filter(|key| self.serves.contains(key)) {
            let Some(route) = self.subset.route(routes, key) else { continue };
            let hash = route.hash(key);
            self.hash.add(hash);
            self.services.insert(key.clone(), hash);
            services.insert(key.clone(), Arc::new(route));
        }
        self.claimed = None;
        let now = routes.generation();
        if self.hash == claimed && generation.cluster == now.cluster {
            return Step::Wait;
        }
        self.send(RouteUpdate {
            from: None,
            to: now,
            hash: self.hash,
            services,
            removed: BTreeSet::new(),
            weights: BTreeMap::new(),
            more: false,
        })
    }

    /// Finds what changed since the last comparison.
    fn compare(&mut self, routes: &Routes) -> Step {
        let now = routes.generation();
        let is_same_log = now.cluster == self.compared.cluster && now.index >= self.compared.index;
        let changed = if is_same_log { routes.changed_since(self.compared.index) } else { None };
        let known = || routes.services().chain(self.services.keys()).cloned().collect();
        let changed: BTreeSet<ServiceKey> = changed.map_or_else(known, |changed| changed.into_iter().cloned().collect());

        let mut update = RouteUpdate {
            from: Some(self.sent),
            to: now,
            hash: self.hash,
            services: BTreeMap::new(),
            removed: BTreeSet::new(),
            weights: BTreeMap::new(),
            more: false,
        };
        for key in changed.into_iter().filter(|key| self.serves.contains(key)) {
            let route = self.subset.route(routes, &key);
            let (before, hash) = (self.services.get(&key).copied(), route.as_ref().map(|route| route.hash(&key)));
            if before == hash {
                continue;
            }
            before.into_iter().for_each(|before| self.hash.remove(before));
            hash.into_iter().for_each(|hash| self.hash.add(hash));
            let Some((route, hash)) = route.zip(hash) else {
                self.services.remove(&key);
                update.removed.insert(key);
                continue;
            };
            self.services.insert(key.clone(), hash);
            if before.is_some_and(|before| before.instances == hash.instances) {
                update.weights.insert(key, route.weights);
            } else {
                update.services.insert(key, Arc::new(route));
            }
        }
        let is_unchanged = update.services.is_empty() && update.removed.is_empty() && update.weights.is_empty();
        if is_unchanged && now.cluster == self.sent.cluster {
            return Step::Wait;
        }
        self.send(RouteUpdate { hash: self.hash, ..update })
    }

    fn send(&mut self, update: RouteUpdate) -> Step {
        self.sent = update.to;
        self.is_acknowledged = false;
        Step::Send(update)
    }
}

/// Which instances of a large release a gateway is sent: the same ones while they are there (rendezvous hashing), others than its
/// neighbors.
#[derive(Debug)]
struct Subset {
    seed: u64,
    zone: String,
}

impl Subset {
    fn new(gateway: &str, zone: String) -> Self {
        let digest = Digest::of(gateway.as_bytes()).0;
        Self { seed: u64::from_le_bytes(std::array::from_fn(|byte| digest[byte])), zone }
    }

    fn route(&self, routes: &Routes, service: &ServiceKey) -> Option<ServiceRoute> {
        routes.route(service, |instances| self.choose(instances))
    }

    fn choose(&self, instances: &mut Vec<(u32, Instance)>) {
        if instances.len() <= INSTANCES_PER_RELEASE_MAX {
            return;
        }
        instances.retain(|(_, instance)| instance.state == InstanceState::Serving);
        let (mut near, mut far): (Vec<_>, Vec<_>) =
            instances.drain(..).partition(|(_, instance)| !self.zone.is_empty() && instance.zone == self.zone);
        for list in [&mut near, &mut far] {
            list.sort_by_key(|(target, _)| self.score(*target));
        }
        let far_count = far.len().min(OTHER_ZONES_MAX.max(INSTANCES_PER_RELEASE_MAX.saturating_sub(near.len())));
        near.truncate(INSTANCES_PER_RELEASE_MAX - far_count);
        far.truncate(far_count);
        instances.extend(near.into_iter().chain(far));
        instances.sort_by_key(|(target, _)| *target);
    }

    /// The finalizer of SplitMix64 (Steele, Lea, Flood 2014) over gateway and target.
    fn score(&self, target: u32) -> u64 {
        let mut mixed = self.seed ^ u64::from(target).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
