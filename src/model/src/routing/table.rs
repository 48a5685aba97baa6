//! Where requests go: the route table that servers derive from state and gateways obey, and what the two say to each other.
//! Pure data and pure rules; knows nothing of sockets, of how a table is derived, or of how a request is forwarded.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    ids::{EnvironmentName, IdError, PipelineName, ReleaseId, ServiceName, TargetName},
    units::BasisPoints,
};

/// A service of a pipeline in an environment: what a gateway routes to. Written `shop/production/web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Whose service.
    pub pipeline: PipelineName,
    /// Where it runs.
    pub environment: EnvironmentName,
    /// Which of the pipeline's services.
    pub service: ServiceName,
}

impl ServiceKey {
    /// The host name under which every gateway answers for this service, itself or as the beginning of a longer one:
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

/// Everything a gateway must know to serve. A snapshot: it replaces the one before as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouteTable {
    /// Which state this was derived from; a later state has a higher number. Zero is before any state.
    pub generation: u64,
    /// The services, each at most once.
    pub services: Vec<ServiceRoute>,
}

impl RouteTable {
    /// Whether this table may take the place of `held`: only a later one may, so that a lagging server cannot send a
    /// gateway back in time.
    pub fn supersedes(&self, held: &RouteTable) -> bool {
        self.generation > held.generation
    }
}

/// The way to one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRoute {
    /// Which service.
    pub service: ServiceKey,
    /// Host names that lead to it, besides [`ServiceKey::host_prefix`]: whole names, lower case, without a port.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// The releases that answer for it now.
    pub releases: Vec<ReleaseRoute>,
}

/// One release of a service, as far as traffic is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRoute {
    /// Which release.
    pub release: ReleaseId,
    /// Its share of the traffic. Traffic follows the instances of all releases whose weight is not zero; zero gets none.
    /// (Shares between zero and all are kept for splitting by user and count as all until then.)
    pub weight: BasisPoints,
    /// Where it runs.
    pub instances: Vec<Instance>,
}

/// A process that answers for a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The target it runs on.
    pub target: TargetName,
    /// The target's zone; a gateway prefers instances of its own.
    pub zone: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it takes new requests.
    pub state: InstanceState,
}

/// Whether an instance takes new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// It takes new requests.
    Serving,
    /// It gets no new requests; those in flight are finished.
    Draining,
}

/// The names by which `host` may be known, most specific first: itself, then without its last label, and so on.
/// `web.shop.production.example.com` ends with `web`; a service is looked up under each in turn.
pub fn host_candidates(host: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(host), |name| name.rsplit_once('.').map(|(rest, _)| rest))
}

/// What a gateway says when its session begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayHello {
    /// The gateway's name, for people.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Where it listens for requests.
    pub addresses: Vec<SocketAddr>,
    /// The generation of the table that it holds; zero when it holds none.
    pub generation: u64,
}

/// A gateway's messages to its server: MessagePack with field names, one in each binary WebSocket frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GatewayToServer {
    /// The first message of a session.
    Hello(GatewayHello),
    /// Every ten seconds: it is alive and serves by the table of this generation.
    Heartbeat {
        /// Zero when it holds no table.
        generation: u64,
    },
}

/// A server's messages to a gateway: MessagePack with field names, one in each binary WebSocket frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerToGateway {
    /// The table to serve by from now on.
    Routes(RouteTable),
    /// The server is alive. Without any frame for thirty seconds a gateway looks for another server.
    Heartbeat,
}

/// Upper bounds of the latency buckets, in microseconds, a sample being counted in the first whose bound it does not exceed.
/// A last bucket without a bound follows.
pub const LATENCY_BOUNDS_US: [u64; 23] = [
    250, 500, 1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 50_000, 75_000, 100_000, 150_000, 200_000,
    300_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000, 30_000_000,
];

/// The number of latency buckets, the one without a bound included.
pub const LATENCY_BUCKETS: usize = LATENCY_BOUNDS_US.len() + 1;

/// What one gateway measured of one release in one second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseSecond {
    /// Which service.
    pub service: ServiceKey,
    /// Which of its releases.
    pub release: ReleaseId,
    /// Seconds since 1970-01-01T00:00:00Z by the gateway's clock.
    pub second: u64,
    /// The counts.
    pub counts: Counts,
}

/// Counts of answered and unanswered tries. A request is tried once as a rule; one that failed at an instance and was answered by
/// another counts at both, so that a release whose instances fail does not look well because of those that stood in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Answers by class: 1xx, 2xx, 3xx, 4xx, 5xx.
    pub answers: [u64; 5],
    /// Tries to which the instance gave no answer: refused, reset, timed out.
    pub unanswered: u64,
    /// Answers whose body broke off; they are counted among `answers` too.
    pub broken: u64,
    /// The time until an answer's head came, summed up, in microseconds.
    pub latency_us_sum: u64,
    /// The same by bucket ([`LATENCY_BOUNDS_US`]), one for each answer.
    pub latency: [u64; LATENCY_BUCKETS],
}

impl Counts {
    /// Counts an answer of HTTP status `status` whose head came after `latency_us`.
    pub fn count_answer(&mut self, status: u16, latency_us: u64) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.answers[class] += 1;
        self.latency_us_sum += latency_us;
        self.latency[LATENCY_BOUNDS_US.partition_point(|bound| *bound < latency_us)] += 1;
    }

    /// Adds another's counts to these.
    pub fn add(&mut self, other: &Counts) {
        self.answers.iter_mut().zip(other.answers).for_each(|(sum, count)| *sum += count);
        self.latency.iter_mut().zip(other.latency).for_each(|(sum, count)| *sum += count);
        self.unanswered += other.unanswered;
        self.broken += other.broken;
        self.latency_us_sum += other.latency_us_sum;
    }

    /// All tries, answered or not.
    pub fn requests(&self) -> u64 {
        self.answers.iter().sum::<u64>() + self.unanswered
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn table(generation: u64) -> RouteTable {
        let instance = Instance {
            target: "host-1".parse().unwrap(),
            zone: "a".into(),
            address: "10.0.0.1:8080".parse().unwrap(),
            state: InstanceState::Draining,
        };
        let release = ReleaseRoute { release: "shop@3".parse().unwrap(), weight: BasisPoints::ALL, instances: vec![instance] };
        let service = "shop/production/web".parse().unwrap();
        RouteTable {
            generation,
            services: vec![ServiceRoute { service, hosts: vec!["shop.example".into()], releases: vec![release] }],
        }
    }

    #[test]
    fn only_a_later_table_takes_the_place_of_another() {
        assert!(table(2).supersedes(&table(1)));
        assert!(!table(2).supersedes(&table(2)));
        assert!(!table(1).supersedes(&table(2)));
    }

    #[test]
    fn a_table_is_the_same_after_the_wire_and_after_json() {
        let message = ServerToGateway::Routes(table(7));
        let frame = rmp_serde::to_vec_named(&message).unwrap();
        assert_eq!(rmp_serde::from_slice::<ServerToGateway>(&frame).unwrap(), message);
        let json = serde_json::to_string(&table(7)).unwrap();
        assert!(json.contains(r#""address":"10.0.0.1:8080","state":"draining""#), "{json}");
        assert_eq!(serde_json::from_str::<RouteTable>(&json).unwrap(), table(7));
    }

    #[test]
    fn a_service_is_written_as_people_say_it() {
        let key: ServiceKey = "shop/production/web".parse().unwrap();
        assert_eq!((key.to_string().as_str(), key.host_prefix().as_str()), ("shop/production/web", "web.shop.production"));
        for bad in ["", "shop", "shop/production", "shop/production/web/x", "shop//web", "Shop/production/web"] {
            assert!(bad.parse::<ServiceKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_host_is_tried_from_its_whole_to_its_first_label() {
        assert_eq!(
            host_candidates("web.shop.prod.lan").collect::<Vec<_>>(),
            ["web.shop.prod.lan", "web.shop.prod", "web.shop", "web"]
        );
    }

    #[test]
    fn latencies_fall_into_the_first_bucket_that_holds_them() {
        let mut counts = Counts::default();
        for (status, latency_us) in [(200, 0), (200, 250), (404, 251), (503, u64::from(u32::MAX))] {
            counts.count_answer(status, latency_us);
        }
        assert_eq!(counts.answers, [0, 2, 0, 1, 1]);
        assert_eq!((counts.latency[0], counts.latency[1], counts.latency[LATENCY_BUCKETS - 1]), (2, 1, 1));
        assert_eq!(counts.requests(), 4);
    }
}
