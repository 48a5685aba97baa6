//! Counts of requests by release and second, kept for ten minutes. Knows nothing of who reads them.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use swell_model::{
    ids::ReleaseId,
    routing::{
        measurement::{Counts, ReleaseSecond},
        table::ServiceKey,
    },
};

/// How many seconds are kept: ten minutes.
pub const SECONDS_KEPT: u64 = 600;

/// Seconds since 1970-01-01T00:00:00Z by this machine's clock.
pub fn unix_second() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Locks are held for a few additions only: a panic meanwhile leaves valid counts.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The counts of one release of one service.
#[derive(Debug, Default)]
pub struct ReleaseMeter(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    total: Counts,
    /// Ascending, at most [`SECONDS_KEPT`]. Seconds without requests are left out.
    seconds: VecDeque<(u64, Counts)>,
}

impl ReleaseMeter {
    /// Counts an answer of HTTP status `status` whose head came after `latency`.
    pub fn answered(&self, second: u64, status: u16, latency: Duration) {
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.count(second, |counts| counts.count_answer(status, latency_us));
    }

    /// Counts an attempt without an answer.
    pub fn unanswered(&self, second: u64) {
        self.count(second, |counts| counts.unanswered += 1);
    }

    /// Counts an answer whose body was cut off.
    pub fn broken(&self, second: u64) {
        self.count(second, |counts| counts.broken += 1);
    }

    fn count(&self, second: u64, change: impl Fn(&mut Counts)) {
        let mut counted = lock(&self.0);
        change(&mut counted.total);
        // After a clock jumped back, the latest second is used, so the ring stays in order.
        if counted.seconds.back().is_none_or(|(latest, _)| *latest < second) {
            counted.seconds.push_back((second, Counts::default()));
        }
        if let Some((_, counts)) = counted.seconds.back_mut() {
            change(counts);
        }
        while counted.seconds.front().is_some_and(|(oldest, _)| oldest + SECONDS_KEPT <= second) {
            counted.seconds.pop_front();
        }
    }

    /// Counts since the gateway started.
    pub fn total(&self) -> Counts {
        lock(&self.0).total.clone()
    }

    fn is_quiet_since(&self, second: u64) -> bool {
        lock(&self.0).seconds.back().is_none_or(|(latest, _)| *latest < second)
    }
}

/// All counts of one gateway.
#[derive(Debug, Default)]
pub struct Meters {
    releases: Mutex<BTreeMap<(ServiceKey, ReleaseId), Arc<ReleaseMeter>>>,
    refused: Mutex<BTreeMap<u16, u64>>,
    /// Attempts after the first of their request.
    pub retries: AtomicU64,
    /// Open connections from clients.
    pub connections: AtomicUsize,
}

impl Meters {
    /// The meter of a release: the same one while it is used or was in the last ten minutes.
    pub fn of(&self, service: &ServiceKey, release: &ReleaseId) -> Arc<ReleaseMeter> {
        Arc::clone(lock(&self.releases).entry((service.clone(), release.clone())).or_default())
    }

    /// Counts an answer of the gateway itself, of HTTP status `status`.
    pub fn refused(&self, status: u16) {
        *lock(&self.refused).entry(status).or_default() += 1;
    }

    /// Answers of the gateway itself, by HTTP status.
    pub fn refusals(&self) -> BTreeMap<u16, u64> {
        lock(&self.refused).clone()
    }

    /// Counts of every release since the gateway started.
    pub fn totals(&self) -> Vec<(ServiceKey, ReleaseId, Counts)> {
        lock(&self.releases).iter().map(|((s, r), meter)| (s.clone(), r.clone(), meter.total())).collect()
    }

    /// The seconds in `from..until`, at most the last ten minutes. The present second is not over: `until` should not exceed it.
    pub fn seconds(&self, from: u64, until: u64) -> Vec<ReleaseSecond> {
        let mut found = Vec::new();
        for ((service, release), meter) in lock(&self.releases).iter() {
            let counted = lock(&meter.0);
            let wanted = counted.seconds.iter().filter(|(second, _)| (from..until).contains(second));
            found.extend(wanted.map(|(second, counts)| ReleaseSecond {
                service: service.clone(),
                release: release.clone(),
                second: *second,
                counts: counts.clone(),
            }));
        }
        found
    }

    /// Forgets releases that are in no table and had no request for ten minutes.
    pub fn forget_unused(&self, now_second: u64) {
        let long_ago = now_second.saturating_sub(SECONDS_KEPT);
        lock(&self.releases).retain(|_, meter| Arc::strong_count(meter) > 1 || !meter.is_quiet_since(long_ago));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn meter_keeps_ten_minutes_of_seconds_and_the_total() {
        let meters = Meters::default();
        let (service, release) = ("shop/prod/web".parse().unwrap(), "shop@1".parse().unwrap());
        let meter = meters.of(&service, &release);
        for second in 1000..2000 {
            meter.answered(second, 200, Duration::from_millis(1));
            meter.unanswered(second);
        }
        assert_eq!(meter.total().requests(), 2000);
        let seconds = meters.seconds(0, u64::MAX);
        assert_eq!((seconds.len(), seconds[0].second), (600, 1400));
        assert!(seconds.iter().all(|second| second.counts.answers[1] == 1 && second.counts.unanswered == 1));
        assert_eq!(meters.seconds(1990, 1995).len(), 5);
    }

    #[test]
    fn release_is_forgotten_when_unused_and_quiet() {
        let meters = Meters::default();
        let (service, release) = ("shop/prod/web".parse().unwrap(), "shop@1".parse().unwrap());
        let meter = meters.of(&service, &release);
        meter.answered(1000, 200, Duration::ZERO);
        meters.forget_unused(9000);
        assert_eq!(meters.totals().len(), 1);
        drop(meter);
        meters.forget_unused(1500);
        assert_eq!(meters.totals().len(), 1);
        meters.forget_unused(9000);
        assert!(meters.totals().is_empty());
    }
}
