//! One address that requests are sent to: its load, and whether it is ejected for failing too often.
//! Keyed by address, so it outlives tables; knows nothing of services or releases.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicU32, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};

use hyper::http::uri::Authority;

/// Failures in a row after which an address is ejected: gets no requests while others are there.
pub const FAILURES_BEFORE_EJECTION: u32 = 5;
/// How long the first ejection takes; each further one takes twice as long.
pub const EJECTION_BASE: Duration = Duration::from_secs(5);
/// The longest ejection.
pub const EJECTION_MAX: Duration = Duration::from_secs(60);

/// Milliseconds since the first call. Monotonic.
pub fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    // From one on: zero means "never" in the counters below.
    START.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

/// An address and the record of requests to it.
#[derive(Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// The same as the authority of a URI.
    pub authority: Authority,
    in_flight: AtomicUsize,
    failures_in_row: AtomicU32,
    ejections: AtomicU32,
    ejected_until_ms: AtomicU64,
}

impl Endpoint {
    /// An address without a record; `None` if it cannot be in a URI (an IPv6 zone index).
    pub fn new(address: SocketAddr) -> Option<Self> {
        let authority = address.to_string().parse().ok()?;
        Some(Self {
            address,
            authority,
            in_flight: AtomicUsize::new(0),
            failures_in_row: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            ejected_until_ms: AtomicU64::new(0),
        })
    }

    /// Requests and tunnels that have begun and not ended.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(SeqCst)
    }

    /// Counts a request until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, SeqCst);
        InFlight(Arc::clone(self))
    }

    /// Whether the address is ejected at `now_ms`.
    pub fn is_ejected(&self, now_ms: u64) -> bool {
        self.ejected_until_ms.load(Relaxed) > now_ms
    }

    /// Records an answer.
    pub fn succeeded(&self) {
        // Loads first: usually nothing is written, so cores do not contend for the cache line.
        if self.failures_in_row.load(Relaxed) != 0 {
            self.failures_in_row.store(0, Relaxed);
        }
        if self.ejections.load(Relaxed) != 0 {
            self.ejections.store(0, Relaxed);
        }
    }

    /// Records a failure: refused, broke off, timed out or answered 502, 503 or 504. Returns whether that ejects the address.
    pub fn failed(&self, now_ms: u64) -> bool {
        let failures = self.failures_in_row.fetch_add(1, Relaxed) + 1;
        if failures < FAILURES_BEFORE_EJECTION || self.is_ejected(now_ms) {
            return false;
        }
        // One more failure after an ejection is enough for the next, longer one.
        self.failures_in_row.store(FAILURES_BEFORE_EJECTION - 1, Relaxed);
        let earlier = self.ejections.fetch_add(1, Relaxed).min(16);
        let length = EJECTION_BASE.saturating_mul(1 << earlier).min(EJECTION_MAX);
        self.ejected_until_ms.store(now_ms + length.as_millis() as u64, Relaxed);
        true
    }

    /// Forgets failures: another release runs at this address now.
    pub fn forget_failures(&self) {
        self.failures_in_row.store(0, Relaxed);
        self.ejections.store(0, Relaxed);
        self.ejected_until_ms.store(0, Relaxed);
    }
}

/// A request in flight at an endpoint; ends when dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Endpoint>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_is_ejected_after_failures_in_a_row_and_longer_each_time() {
        let endpoint = Endpoint::new("[::1]:80".parse().unwrap()).unwrap();
        for _ in 1..FAILURES_BEFORE_EJECTION {
            assert!(!endpoint.failed(1000));
        }
        endpoint.succeeded();
        for _ in 1..FAILURES_BEFORE_EJECTION {
            assert!(!endpoint.failed(1000));
        }
        assert!(endpoint.failed(1000));
        assert!(endpoint.is_ejected(5999) && !endpoint.is_ejected(6000));
        assert!(!endpoint.failed(2000), "requests in flight do not eject it again");
        assert!(endpoint.failed(6000), "one failure after an ejection is enough");
        assert!(endpoint.is_ejected(15_999) && !endpoint.is_ejected(16_000));
        let mut now_ms = 16_000;
        for _ in 0..40 {
            assert!(endpoint.failed(now_ms));
            now_ms += EJECTION_MAX.as_millis() as u64;
            assert!(!endpoint.is_ejected(now_ms));
        }
    }

    #[test]
    fn in_flight_counts_requests_until_they_end() {
        let endpoint = Arc::new(Endpoint::new("127.0.0.1:80".parse().unwrap()).unwrap());
        let (first, second) = (endpoint.begin(), endpoint.begin());
        assert_eq!(endpoint.in_flight(), 2);
        drop((first, second));
        assert_eq!(endpoint.in_flight(), 0);
    }
}
