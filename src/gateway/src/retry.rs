//! When a request may be sent again: when the first attempt cannot have had an effect or the request is idempotent, and within a
//! budget. Knows nothing of connections.
//!
//! Safe and idempotent methods: RFC 9110, 9.2. The budget is Finagle's and linkerd's: a share of the requests, plus a floor.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use hyper::Method;

/// How an attempt ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection was made: nothing was sent.
    NotConnected,
    /// The connection broke before the answer began: the request may have had an effect.
    Reset,
    /// The answer did not begin in time: the request may still have an effect.
    TimedOut,
    /// The answer was not HTTP.
    Garbled,
    /// The client's body broke off, stalled or was too long.
    Client,
}

/// What is left of a request's body for another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLeft {
    /// All of it: there is none, it is buffered, or none of it was read.
    Whole,
    /// Some of it was sent and is not buffered.
    Spent,
}

/// Whether another attempt is safe.
pub fn may_retry(failure: Failure, method: &Method, body: BodyLeft) -> bool {
    match failure {
        Failure::NotConnected => body == BodyLeft::Whole,
        Failure::Reset => body == BodyLeft::Whole && method.is_idempotent(),
        Failure::TimedOut | Failure::Garbled | Failure::Client => false,
    }
}

/// Each request allows this much of a retry, in thousandths: 20 %.
const PER_REQUEST: i64 = 200;
/// Each second allows this much besides, in thousandths: 10 retries.
const PER_SECOND: i64 = 10_000;
/// The most that accumulates, in thousandths: 1,000 retries. More would allow a retry storm after a quiet time.
const SAVED_MAX: i64 = 1_000_000;

/// Retries that a service has left, so that retries do not multiply the load of a failing service.
#[derive(Debug)]
pub struct RetryBudget {
    saved: AtomicI64,
    refilled_ms: AtomicU64,
}

impl RetryBudget {
    /// A budget that begins, at `now_ms`, with what ten seconds allow.
    pub fn new(now_ms: u64) -> Self {
        Self { saved: AtomicI64::new(10 * PER_SECOND), refilled_ms: AtomicU64::new(now_ms) }
    }

    /// Counts a request, which adds to the budget.
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
    fn request_that_may_have_had_an_effect_is_retried_only_if_idempotent() {
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
    fn budget_allows_a_fifth_of_requests_and_ten_retries_a_second() {
        let budget = RetryBudget::new(1);
        let spend_all = |now_ms| (0..10_000).take_while(|_| budget.spend(now_ms)).count();
        assert_eq!(spend_all(1), 100);
        (0..1000).for_each(|_| budget.earn());
        assert_eq!(spend_all(1), 200);
        assert_eq!(spend_all(1001), 10);
        assert_eq!(spend_all(9_000_000), 100, "what a quiet time adds is bounded");
        (0..1_000_000).for_each(|_| budget.earn());
        assert_eq!(spend_all(9_000_000), 1000);
    }
}
