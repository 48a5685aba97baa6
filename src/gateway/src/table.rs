//! The routes that a gateway serves by, made quick to look up and swapped as a whole. Knows nothing of connections; the rules
//! of which table may replace which are `model::routes`'.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering::SeqCst},
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use swell_model::{
    ids::ReleaseId,
    routing::table::{InstanceState, RouteTable, ServiceKey, ServiceRoute, host_candidates},
};

use super::{
    balance::{Candidate, Candidates},
    endpoint::{Endpoint, InFlight, now_ms},
    measure::{Meters, unix_second},
    retry::RetryBudget,
};

/// A table that was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the route table of generation {offered} is not later than the one held, {held}; it is ignored")]
pub struct Outdated {
    /// The generation that was offered.
    pub offered: u64,
    /// The generation that stays.
    pub held: u64,
}

/// One service as requests meet it.
#[derive(Debug)]
pub struct LiveService {
    /// Which service.
    pub key: ServiceKey,
    /// Its instances that take new requests.
    pub candidates: Candidates,
    /// Its retries.
    pub budget: Arc<RetryBudget>,
}

/// A table made ready for looking up.
#[derive(Debug, Default)]
pub struct LiveTable {
    /// What it was made of.
    pub source: Arc<RouteTable>,
    by_key: HashMap<ServiceKey, Arc<LiveService>>,
    by_host: HashMap<String, ServiceKey>,
    by_prefix: HashMap<String, ServiceKey>,
}

impl LiveTable {
    /// The service of this name.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<LiveService>> {
        self.by_key.get(key)
    }

    /// The service that answers to this host (lower case, no port): a configured one first, then by
    /// [`ServiceKey::host_prefix`].
    pub fn service_for_host(&self, host: &str) -> Option<&Arc<LiveService>> {
        let key = self.by_host.get(host).or_else(|| host_candidates(host).find_map(|name| self.by_prefix.get(name)));
        key.and_then(|key| self.by_key.get(key))
    }

    /// All services.
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
    /// Endpoints by address, with the release last seen there. Held while a table is applied, so that two never race.
    endpoints: Mutex<HashMap<SocketAddr, (Weak<Endpoint>, ReleaseId)>>,
    latest: watch::Sender<Arc<RouteTable>>,
}

impl TableHandle {
    /// An empty table of generation zero, for a gateway in `zone`.
    pub fn new(zone: String, meters: Arc<Meters>) -> Self {
        let (latest, _) = watch::channel(Arc::default());
        Self(Arc::new(Shared { live: ArcSwap::default(), zone, meters, endpoints: Mutex::default(), latest }))
    }

    /// Puts `table` in force at once for every request that has not been given to an instance yet. Requests in flight keep
    /// their instance. Takes about a microsecond an instance: with thousands, call it where blocking is allowed.
    ///
    /// # Errors
    /// When the table held is as late or later; it stays.
    pub fn apply(&self, table: RouteTable) -> Result<(), Outdated> {
        let mut endpoints = self.0.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.0.live.load_full();
        if !table.supersedes(&held.source) {
            return Err(Outdated { offered: table.generation, held: held.source.generation });
        }
        let live = self.compile(table, &held, &mut endpoints);
        let source = Arc::clone(&live.source);
        self.0.live.store(Arc::new(live));
        self.0.latest.send_replace(source);
        drop(held);
        endpoints.retain(|_, (endpoint, _)| endpoint.strong_count() > 0);
        self.0.meters.forget_unused(unix_second());
        Ok(())
    }

    /// The table in force.
    pub fn load(&self) -> arc_swap::Guard<Arc<LiveTable>> {
        self.0.live.load()
    }

    /// The generation in force; zero before any table.
    pub fn generation(&self) -> u64 {
        self.load().source.generation
    }

    /// Chooses an instance of a service by the table in force, and counts a request to it from now on; `None` when the service
    /// is gone or has no instance.
    ///
    /// Whoever applies a table without an instance and then sees [`Endpoint::in_flight`] at zero there knows that no request comes
    /// any more: one that chose by the table before is counted before the table is looked at again, and then chooses anew.
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

    /// Requests and tunnels at this address, whether it still takes new ones or not.
    #[cfg(test)]
    pub fn in_flight(&self, address: SocketAddr) -> usize {
        let endpoints = self.0.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        std::sync::atomic::fence(SeqCst);
        endpoints.get(&address).and_then(|(endpoint, _)| endpoint.upgrade()).map_or(0, |endpoint| endpoint.in_flight())
    }

    /// Tells of each table that comes in force; a slow listener sees only the latest.
    pub fn watch(&self) -> watch::Receiver<Arc<RouteTable>> {
        self.0.latest.subscribe()
    }

    fn compile(
        &self,
        table: RouteTable,
        held: &LiveTable,
        endpoints: &mut HashMap<SocketAddr, (Weak<Endpoint>, ReleaseId)>,
    ) -> LiveTable {
        let mut live = LiveTable::default();
        for route in &table.services {
            let key = &route.service;
            let budget = match held.service(key) {
                Some(before) => Arc::clone(&before.budget),
                None => Arc::new(RetryBudget::new(now_ms())),
            };
            let candidates = self.candidates(route, endpoints);
            live.by_prefix.insert(key.host_prefix(), key.clone());
            live.by_host.extend(route.hosts.iter().map(|host| (host.to_ascii_lowercase(), key.clone())));
            live.by_key.insert(key.clone(), Arc::new(LiveService { key: key.clone(), candidates, budget }));
        }
        live.source = Arc::new(table);
        live
    }

    fn candidates(&self, route: &ServiceRoute, endpoints: &mut HashMap<SocketAddr, (Weak<Endpoint>, ReleaseId)>) -> Candidates {
        let mut candidates = Candidates::default();
        for release in route.releases.iter().filter(|release| release.weight.0 > 0) {
            let meter = self.0.meters.of(&route.service, &release.release);
            for instance in release.instances.iter().filter(|instance| instance.state == InstanceState::Serving) {
                let Some(endpoint) = endpoint_at(instance.address, &release.release, endpoints) else {
                    tracing::warn!(address = %instance.address, target_name = %instance.target, "instance left out: its address cannot be called");
                    continue;
                };
                let candidate = Candidate { endpoint, meter: Arc::clone(&meter) };
                let near = !self.0.zone.is_empty() && instance.zone == self.0.zone;
                if near { candidates.near.push(candidate) } else { candidates.far.push(candidate) }
            }
        }
        candidates
    }
}

fn endpoint_at(
    address: SocketAddr,
    release: &ReleaseId,
    endpoints: &mut HashMap<SocketAddr, (Weak<Endpoint>, ReleaseId)>,
) -> Option<Arc<Endpoint>> {
    if let Some((known, seen)) = endpoints.get_mut(&address)
        && let Some(endpoint) = known.upgrade()
    {
        if seen != release {
            *seen = release.clone();
            endpoint.forgive();
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

    fn handle() -> TableHandle {
        TableHandle::new("a".into(), Arc::default())
    }

    #[test]
    fn an_older_table_is_refused() {
        let handle = handle();
        handle.apply(table(3, vec![])).unwrap();
        for offered in [0, 2, 3] {
            assert_eq!(handle.apply(table(offered, vec![])), Err(Outdated { offered, held: 3 }));
        }
        handle.apply(table(4, vec![])).unwrap();
        assert_eq!(handle.generation(), 4);
    }

    #[test]
    fn a_host_leads_to_its_service() {
        let handle = handle();
        let mut named = route("blog/prod/web", vec![]);
        named.hosts = vec!["Blog.Example".into()];
        handle.apply(table(1, vec![route("shop/prod/web", vec![]), named])).unwrap();
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
    fn loads_outlive_tables_and_draining_instances_get_nothing() {
        let handle = handle();
        let address: SocketAddr = "127.0.0.1:9".parse().unwrap();
        handle.apply(table(1, vec![route("shop/prod/web", vec![instance(address, "a")])])).unwrap();
        let pick = || handle.load().services().next().unwrap().candidates.pick(&[], 1).cloned();
        let guard = pick().unwrap().endpoint.begin();
        let mut draining = instance(address, "a");
        draining.state = InstanceState::Draining;
        handle.apply(table(2, vec![route("shop/prod/web", vec![draining])])).unwrap();
        assert!(pick().is_none());
        handle.apply(table(3, vec![route("shop/prod/web", vec![instance(address, "a")])])).unwrap();
        assert_eq!(pick().unwrap().endpoint.in_flight(), 1);
        drop(guard);
        assert_eq!(pick().unwrap().endpoint.in_flight(), 0);
    }
}
