//! The table that a gateway routes by, made quick to look up and swapped as a whole. Knows nothing of connections; the rules
//! of which table may replace which are `swell_model::routing::update`'s.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering::SeqCst},
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use swell_model::{
    ids::ReleaseId,
    rollout::assignment::Generation,
    routing::{
        table::{InstanceState, RouteTable, ServiceKey, ServiceRoute, host_candidates},
        update::{RouteUpdate, UpdateError},
    },
};

use super::{
    balance::{Candidate, Candidates},
    endpoint::{Endpoint, InFlight, now_ms},
    measure::{Meters, unix_second},
    retry::RetryBudget,
};

/// A service, ready to be looked up.
#[derive(Debug)]
pub struct LiveService {
    pub key: ServiceKey,
    /// Instances that take new requests.
    pub candidates: Candidates,
    pub budget: Arc<RetryBudget>,
    /// The route that `candidates` were made of.
    source: Arc<ServiceRoute>,
}

/// A table, ready to be looked up.
#[derive(Debug, Default)]
pub struct LiveTable {
    /// The table that this one was made of.
    pub source: Arc<RouteTable>,
    by_key: HashMap<ServiceKey, Arc<LiveService>>,
    by_host: HashMap<String, ServiceKey>,
    by_prefix: HashMap<String, ServiceKey>,
}

impl LiveTable {
    /// Looks up a service by name.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<LiveService>> {
        self.by_key.get(key)
    }

    /// Looks up the service of a host (lower case, without port): by configured host names first, then by
    /// [`ServiceKey::host_prefix`].
    pub fn service_for_host(&self, host: &str) -> Option<&Arc<LiveService>> {
        let key = self.by_host.get(host).or_else(|| host_candidates(host).find_map(|name| self.by_prefix.get(name)));
        key.and_then(|key| self.by_key.get(key))
    }

    /// Returns all services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<LiveService>> {
        self.by_key.values()
    }
}

/// The table in force. Cheap to clone; all clones are the same table.
#[derive(Debug, Clone)]
pub struct TableHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    live: ArcSwap<LiveTable>,
    zone: String,
    meters: Arc<Meters>,
    /// Endpoints by address, with the release last seen there. Locked while a table is applied, so that two never race.
    endpoints: Mutex<Endpoints>,
    latest: watch::Sender<Arc<RouteTable>>,
}

impl TableHandle {
    /// An empty table of the default generation, for a gateway in `zone`.
    pub fn new(zone: String, meters: Arc<Meters>) -> Self {
        let (latest, _) = watch::channel(Arc::default());
        Self(Arc::new(Shared { live: ArcSwap::default(), zone, meters, endpoints: Mutex::default(), latest }))
    }

    /// Puts the table after `update`, which is complete, in force at once for every request that has not been given to an instance
    /// yet. Requests in flight keep their instance. Takes about a microsecond for each instance of the services that changed: with
    /// thousands, call it where blocking is allowed.
    ///
    /// # Errors
    /// When the update does not fit the table in force, which stays.
    pub fn update(&self, update: RouteUpdate) -> Result<(), UpdateError> {
        let mut endpoints = self.0.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.0.live.load_full();
        let table = Arc::new(held.source.updated(update)?);
        self.0.live.store(Arc::new(self.compile(Arc::clone(&table), &held, &mut endpoints)));
        self.0.latest.send_replace(table);
        drop(held);
        endpoints.retain(|_, (endpoint, _)| endpoint.strong_count() > 0);
        self.0.meters.forget_unused(unix_second());
        Ok(())
    }

    /// Puts a whole table in force, as [`TableHandle::update`] does.
    ///
    /// # Errors
    /// When the table in force is newer; it stays.
    pub fn apply(&self, table: &RouteTable) -> Result<(), UpdateError> {
        self.update(RouteUpdate::snapshot(table))
    }

    /// Returns the table in force.
    pub fn load(&self) -> arc_swap::Guard<Arc<LiveTable>> {
        self.0.live.load()
    }

    /// Generation of the table in force; the default before any.
    pub fn generation(&self) -> Generation {
        self.load().source.generation
    }

    /// Chooses an instance of a service by the table in force, and counts a request to it from now on; `None` when the service
    /// is gone or has no instance.
    ///
    /// A caller that applies a table without an instance and then sees [`Endpoint::in_flight`] at zero there may rely on no request
    /// coming any more: one that chose by the former table is counted before the table is read again, and then chooses anew.
    pub fn begin(&self, service: &ServiceKey, tried: &[SocketAddr]) -> Option<(Candidate, InFlight)> {
        let mut table = self.0.live.load();
        loop {
            let candidate = table.service(service)?.candidates.pick(tried, now_ms())?.clone();
            let in_flight = candidate.endpoint.begin();
            std::sync::atomic::fence(SeqCst);
            let now = self.0.live.load();
            if Arc::ptr_eq(&table, &now) {
                return Some((candidate, in_flight));
            }
            table = now;
        }
    }

    /// Counts the requests and tunnels at this address, whether it still takes new ones or not.
    #[cfg(test)]
    pub fn in_flight(&self, address: SocketAddr) -> usize {
        let endpoints = self.0.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        std::sync::atomic::fence(SeqCst);
        endpoints.get(&address).and_then(|(endpoint, _)| endpoint.upgrade()).map_or(0, |endpoint| endpoint.in_flight())
    }

    /// Follows the tables that come in force; a slow receiver sees only the latest.
    pub fn watch(&self) -> watch::Receiver<Arc<RouteTable>> {
        self.0.latest.subscribe()
    }

    /// Makes `table` ready. Services whose route is shared with `held` are taken over as they are.
    fn compile(&self, table: Arc<RouteTable>, held: &LiveTable, endpoints: &mut Endpoints) -> LiveTable {
        let mut live = LiveTable { source: table, ..LiveTable::default() };
        for (key, route) in live.source.services() {
            let before = held.service(key);
            let service = match before.filter(|before| Arc::ptr_eq(&before.source, route)) {
                Some(unchanged) => Arc::clone(unchanged),
                None => {
                    let budget = before.map(|before| Arc::clone(&before.budget));
                    let budget = budget.unwrap_or_else(|| Arc::new(RetryBudget::new(now_ms())));
                    let candidates = self.candidates(key, route, endpoints);
                    Arc::new(LiveService { key: key.clone(), candidates, budget, source: Arc::clone(route) })
                }
            };
            live.by_prefix.insert(key.host_prefix(), key.clone());
            live.by_host.extend(route.hosts.iter().map(|host| (host.to_ascii_lowercase(), key.clone())));
            live.by_key.insert(key.clone(), service);
        }
        live
    }

    fn candidates(&self, key: &ServiceKey, route: &ServiceRoute, endpoints: &mut Endpoints) -> Candidates {
        let mut candidates = Candidates::default();
        for (release, instances) in route.releases.iter().filter(|(release, _)| route.weights.share(release).0 > 0) {
            let (meter, shared) = (self.0.meters.of(key, release), Arc::new(release.clone()));
            for instance in instances.iter().filter(|instance| instance.state == InstanceState::Serving) {
                let Some(endpoint) = endpoint_at(instance.address, release, endpoints) else {
                    tracing::warn!(target_name = %instance.target, address = %instance.address, "instance left out, its address cannot be in a URI");
                    continue;
                };
                let candidate = Candidate { release: Arc::clone(&shared), endpoint, meter: Arc::clone(&meter) };
                let is_near = !self.0.zone.is_empty() && instance.zone == self.0.zone;
                if is_near { candidates.near.push(candidate) } else { candidates.far.push(candidate) }
            }
        }
        candidates
    }
}

/// By address, with the release last seen there: another release gets a clean record.
type Endpoints = HashMap<SocketAddr, (Weak<Endpoint>, ReleaseId)>;

fn endpoint_at(address: SocketAddr, release: &ReleaseId, endpoints: &mut Endpoints) -> Option<Arc<Endpoint>> {
    if let Some((known, seen)) = endpoints.get_mut(&address)
        && let Some(endpoint) = known.upgrade()
    {
        if seen != release {
            *seen = release.clone();
            endpoint.forget_failures();
        }
        return Some(endpoint);
    }
    let endpoint = Arc::new(Endpoint::new(address)?);
    endpoints.insert(address, (Arc::downgrade(&endpoint), release.clone()));
    Some(endpoint)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tests::support::{instance, route, table};
    use swell_model::units::BasisPoints;

    fn handle() -> TableHandle {
        TableHandle::new("a".into(), Arc::default())
    }

    #[test]
    fn older_table_is_refused() {
        let handle = handle();
        handle.apply(&table(3, vec![])).unwrap();
        let offered = table(2, vec![]);
        let current = table(3, vec![]).generation;
        assert_eq!(handle.apply(&offered), Err(UpdateError::Outdated { offered: offered.generation, current }));
        handle.apply(&table(4, vec![])).unwrap();
        assert_eq!(handle.generation().index, 4);
        let mut restored = table(1, vec![]);
        restored.generation.cluster += 1;
        handle.apply(&restored).unwrap();
        assert!(handle.apply(&table(9, vec![])).is_err(), "a restored cluster is newer than any index of the former one");
    }

    #[test]
    fn update_keeps_services_that_did_not_change() {
        let handle = handle();
        let at = |port| instance(([127, 0, 0, 1], port).into(), "a");
        handle.apply(&table(1, vec![route("shop/prod/web", vec![at(1)]), route("blog/prod/web", vec![at(2)])])).unwrap();
        let before = Arc::clone(&handle.load());
        let shop: ServiceKey = "shop/prod/web".parse().unwrap();
        let changed = table(2, vec![route("shop/prod/web", vec![at(3)])]);
        let mut after = before.source.as_ref().clone();
        after.insert(shop.clone(), Arc::clone(&changed.services()[&shop]));
        let update = RouteUpdate { from: Some(before.source.generation), hash: after.hash(), ..RouteUpdate::snapshot(&changed) };
        handle.update(update).unwrap();
        let now = handle.load();
        let same = |key: &str| {
            let key = key.parse().unwrap();
            Arc::ptr_eq(before.service(&key).unwrap(), now.service(&key).unwrap())
        };
        assert!(same("blog/prod/web") && !same("shop/prod/web"));
        assert_eq!(now.service(&shop).unwrap().candidates.iter().next().unwrap().endpoint.address.port(), 3);
    }

    #[test]
    fn release_without_weight_gets_no_requests() {
        let handle = handle();
        let mut routes = table(1, vec![route("shop/prod/web", vec![instance(([127, 0, 0, 1], 9).into(), "a")])]);
        let key: ServiceKey = "shop/prod/web".parse().unwrap();
        let mut service = ServiceRoute::clone(&routes.services()[&key]);
        service.weights.shares.insert("shop@1".parse().unwrap(), BasisPoints(0));
        routes.insert(key.clone(), Arc::new(service));
        handle.apply(&routes).unwrap();
        assert!(handle.begin(&key, &[]).is_none());
    }

    #[test]
    fn host_leads_to_its_service() {
        let handle = handle();
        let (blog, mut named) = route("blog/prod/web", vec![]);
        Arc::make_mut(&mut named).hosts = vec!["Blog.Example".into()];
        handle.apply(&table(1, vec![route("shop/prod/web", vec![]), (blog, named)])).unwrap();
        let live = handle.load();
        let found = |host: &str| live.service_for_host(host).map(|service| service.key.to_string());
        assert_eq!(found("blog.example").as_deref(), Some("blog/prod/web"));
        assert_eq!(found("web.shop.prod").as_deref(), Some("shop/prod/web"));
        assert_eq!(found("web.shop.prod.lan.example").as_deref(), Some("shop/prod/web"));
        assert_eq!(found("xweb.shop.prod"), None);
        assert_eq!(found("www.blog.example"), None);
        assert_eq!(found("shop.prod"), None);
    }

    #[test]
    fn draining_instance_gets_no_requests_and_keeps_its_load() {
        let handle = handle();
        let address: SocketAddr = "127.0.0.1:9".parse().unwrap();
        handle.apply(&table(1, vec![route("shop/prod/web", vec![instance(address, "a")])])).unwrap();
        let pick = || handle.load().services().next().unwrap().candidates.pick(&[], 1).cloned();
        let guard = pick().unwrap().endpoint.begin();
        let mut draining = instance(address, "a");
        draining.state = InstanceState::Draining;
        handle.apply(&table(2, vec![route("shop/prod/web", vec![draining])])).unwrap();
        assert!(pick().is_none());
        handle.apply(&table(3, vec![route("shop/prod/web", vec![instance(address, "a")])])).unwrap();
        assert_eq!(pick().unwrap().endpoint.in_flight(), 1);
        drop(guard);
        assert_eq!(pick().unwrap().endpoint.in_flight(), 0);
    }
}
