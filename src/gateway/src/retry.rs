//! When a request may be sent once more: only when the first try cannot have had an effect, or doing it twice is the same as
//! once, and only within a budget. Knows nothing of connections.
//!
//! Safe and idempotent methods: RFC 9110, 9.2. The budget is Finagle's and linkerd's: a share of the requests, plus a floor.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use hyper::Method;

/// How a try ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection came about: nothing was sent.
    NotConnected,
    /// The connection broke before the answer began: it may have been worked on.
    Reset,
    /// The answer did not begin in time: it may still be worked on.
    TimedOut,
    /// What came was no HTTP answer.
    Garbled,
    /// The client's own body broke off, stood still or was too long.
    Client,
}

/// What is left of a request's body for another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLeft {
    /// All of it: there is none, or it is held, or none of it has been asked for yet.
    Whole,
    /// Some of it has gone to the first try and is not held.
    Spent,
}

/// Whether another try is safe.
pub fn may_retry(failure: Failure, method: &Method, body: BodyLeft) -> bool {
    match failure {
        Failure::NotConnected => body == BodyLeft::Whole,
        Failure::Reset => body == BodyLeft::Whole && method.is_idempotent(),
        Failure::TimedOut | Failure::Garbled | Failure::Client => false,
    }
}

/// Each request allows this much of a retry, in thousandths: 20 %.
const PER_REQUEST: i64 = 200;
/// So much comes each second besides, in thousandths: 10 retries.
const PER_SECOND: i64 = 10_000;
/// The most that can be saved up, in thousandths: 1,000 retries. More would let a long quiet pay for a storm.
const SAVED_MAX: i64 = 1_000_000;

/// How many retries a service has left. Keeps a failing service from being drowned by its own retries.
#[derive(Debug)]
pub struct RetryBudget {
    saved: AtomicI64,
    refilled_ms: AtomicU64,
}

impl RetryBudget {
    /// A budget that begins, at `now_ms`, with ten seconds' floor saved up.
    pub fn new(now_ms: u64) -> Self {
        Self { saved: AtomicI64::new(10 * PER_SECOND), refilled_ms: AtomicU64::new(now_ms) }
    }

    /// A request came.
    pub fn earn(&self) {
        if self.saved.load(Relaxed) < SAVED_MAX {
            self.saved.fetch_add(PER_REQUEST, Relaxed);
        }
    }

    /// Takes one retry, if one is left.
    pub fn spend(&self, now_ms: u64) -> bool {
        let refilled_ms = self.refilled_ms.load(Relaxed);
        let passed_ms = now_ms.saturating_sub(refilled_ms);
        if passed_ms > 0 && self.refilled_ms.compare_exchange(refilled_ms, now_ms, Relaxed, Relaxed).is_ok() {
            let come = (passed_ms.min(1_000_000) as i64 * PER_SECOND / 1000).min(10 * PER_SECOND);
            self.saved.fetch_add(come, Relaxed);
            self.saved.fetch_min(SAVED_MAX, Relaxed);
        }
        self.saved.fetch_update(Relaxed, Relaxed, |saved| (saved >= 1000).then_some(saved - 1000)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_done_twice_that_is_not_the_same_as_once() {
        use {BodyLeft::*, Failure::*};
        assert!(may_retry(NotConnected, &Method::POST, Whole));
        assert!(!may_retry(NotConnected, &Method::POST, Spent));
        assert!(!may_retry(Reset, &Method::POST, Whole));
        assert!(!may_retry(Reset, &Method::PATCH, Whole));
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE] {
            assert!(may_retry(Reset, &method, Whole));
            assert!(!may_retry(Reset, &method, Spent));
            assert!(!may_retry(TimedOut, &method, Whole));
        }
    }

    #[test]
    fn retries_are_a_fifth_of_the_requests_and_ten_a_second() {
        let budget = RetryBudget::new(1);
        let spend_all = |now_ms| (0..10_000).take_while(|_| budget.spend(now_ms)).count();
        assert_eq!(spend_all(1), 100);
        (0..1000).for_each(|_| budget.earn());
        assert_eq!(spend_all(1), 200);
        assert_eq!(spend_all(1001), 10);
        assert_eq!(spend_all(9_000_000), 100, "quiet hours don't pay for a storm");
        (0..1_000_000).for_each(|_| budget.earn());
        assert_eq!(spend_all(9_000_000), 1000);
    }
}
