//! Many simulated agents against one server: their names and places, how they come, and how they come back. Must not know what is said.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use swell_model::{
    fleet::{PortRange, TargetInfo},
    ids::{IdError, TargetName},
    wire::AgentId,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, connect,
    counters::Counters,
    session::{self, End, Shared},
    target::SimulatedTarget,
};

/// First and longest wait before a session is tried again.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Which agents are simulated.
#[derive(Clone)]
pub struct FleetOptions {
    pub server: SocketAddr,
    /// Token of the role `agent`.
    pub token: String,
    /// Number of agents.
    pub agents: u32,
    /// Number of the first one: several generators share a fleet by beginning at different numbers.
    pub first: u32,
    /// Names begin with this; the number follows.
    pub name_prefix: String,
    /// Labels of all of them.
    pub labels: BTreeMap<String, String>,
    /// Zones over which they are spread, in one region.
    pub zones: u32,
    /// Address of number 0; each next target has the next address.
    pub first_address: Ipv4Addr,
    /// Time over which the first sessions are opened.
    pub ramp: Duration,
    /// Decides all that is random.
    pub seed: u64,
}

impl FleetOptions {
    /// `agents` of them, spread over three zones, at addresses that nothing is reached at, opened within a second for each 1,000.
    pub fn new(server: SocketAddr, token: &str, agents: u32) -> Self {
        Self {
            server,
            token: token.to_owned(),
            agents,
            first: 0,
            name_prefix: "sim-".to_owned(),
            labels: BTreeMap::new(),
            zones: 3,
            first_address: Ipv4Addr::new(10, 0, 0, 1),
            ramp: Duration::from_millis(u64::from(agents)),
            seed: 1,
        }
    }

    fn target(&self, number: u32) -> Result<SimulatedTarget, IdError> {
        let name: TargetName = format!("{}{number:05}", self.name_prefix).parse()?;
        let info = TargetInfo {
            name,
            region: "simulated".to_owned(),
            zone: format!("zone-{}", number % self.zones.max(1)),
            labels: self.labels.clone(),
            address: IpAddr::V4(Ipv4Addr::from_bits(self.first_address.to_bits().wrapping_add(number))),
            ports: PortRange::default(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let mut random = fastrand::Rng::with_seed(self.seed ^ u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let agent = AgentId(format!("{:032x}", random.u128(..)));
        Ok(SimulatedTarget::new(info, agent, random.u64(..)))
    }
}

/// Running agents. Dropped, they vanish as if their machines had.
pub struct Fleet {
    shared: Arc<Shared>,
    stop: CancellationToken,
    agents: JoinSet<SimulatedTarget>,
    options: FleetOptions,
}

/// Agents without a session, which remember what they run.
pub struct StoppedFleet {
    targets: Vec<SimulatedTarget>,
    options: FleetOptions,
    /// Zero of the clock that the targets go by.
    started: Instant,
}

impl Fleet {
    /// Lets new agents come.
    ///
    /// # Errors
    /// When this process may not have so many connections.
    pub fn start(options: FleetOptions) -> Result<Self, Error> {
        let numbers = options.first..options.first.saturating_add(options.agents);
        let targets = numbers.map(|number| options.target(number)).collect::<Result<Vec<_>, _>>();
        let targets = targets.map_err(|error| Error::Request(error.to_string()))?;
        StoppedFleet { targets, options, started: Instant::now() }.start()
    }

    /// What the agents saw.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Waits until every agent has a session.
    ///
    /// # Errors
    /// [`Error::TimedOut`] after `limit`.
    pub async fn connected(&self, limit: Duration) -> Result<(), Error> {
        let all = u64::from(self.options.agents);
        self.counters().wait(&format!("connecting {all} agents"), limit, |totals, _| totals.connected == all).await
    }

    /// Ends all sessions; the agents remember what they run.
    pub async fn stop(mut self) -> StoppedFleet {
        self.stop.cancel();
        let mut targets = Vec::with_capacity(self.options.agents as usize);
        while let Some(ended) = self.agents.join_next().await {
            match ended {
                Ok(target) => targets.push(target),
                Err(error) => tracing::error!(%error, "simulated agent failed"),
            }
        }
        StoppedFleet { targets, options: self.options, started: self.shared.started }
    }
}

impl StoppedFleet {
    /// Lets the agents come (again), with counters that begin at zero.
    ///
    /// # Errors
    /// When this process may not have so many connections.
    pub fn start(self) -> Result<Fleet, Error> {
        let Self { targets, options, started } = self;
        connect::allow(options.agents)?;
        let shared =
            Arc::new(Shared { server: options.server, token: options.token.clone(), counters: Counters::default(), started });
        let stop = CancellationToken::new();
        let mut agents = JoinSet::new();
        for (number, target) in (0..).zip(targets) {
            let wait = options.ramp.mul_f64(f64::from(number) / f64::from(options.agents.max(1)));
            let random = fastrand::Rng::with_seed(options.seed.wrapping_add(u64::from(number)));
            agents.spawn(keep(Arc::clone(&shared), number, target, random, wait, stop.clone()));
        }
        Ok(Fleet { shared, stop, agents, options })
    }
}

/// Keeps an agent's session until `stop`, with a longer wait after each failure in a row.
async fn keep(
    shared: Arc<Shared>,
    number: u32,
    mut target: SimulatedTarget,
    mut random: fastrand::Rng,
    mut wait: Duration,
    stop: CancellationToken,
) -> SimulatedTarget {
    let mut failures: u32 = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return target,
            () = sleep(wait) => {}
        }
        let began = Instant::now();
        let ended = tokio::select! {
            () = stop.cancelled() => return target,
            // On the heap only while it lasts: an agent that waits is small.
            ended = Box::pin(session::run(&shared, number, &mut target, &mut random)) => ended,
        };
        // Full jitter (Brooker, "Exponential Backoff and Jitter", 2015), so that a fleet does not come back all at once.
        failures = if began.elapsed() > RETRY_MAX { 1 } else { failures.saturating_add(1) };
        wait = RETRY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(RETRY_MAX).mul_f64(random.f64());
        match ended {
            Ok(End::Busy(retry_after)) => {
                shared.counters.count(&shared.counters.busy);
                wait = retry_after.as_duration().mul_f64(1.0 + random.f64());
            }
            Ok(End::Refused(refusal)) => {
                shared.counters.count(&shared.counters.refused);
                tracing::warn!(number, ?refusal, "simulated agent was refused");
                stop.cancelled().await;
                return target;
            }
            Err(error) => {
                shared.counters.count(&shared.counters.failures);
                tracing::debug!(number, %error, "session lost");
            }
        }
    }
}
