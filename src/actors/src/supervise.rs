//! Restarting what failed: after a growing delay, for ever, because the work is still there. Whoever keeps failing is told loudly and
//! lets the rest run.

use std::time::{Duration, Instant};

use ractor::{ActorRef, Message};
use tokio_util::task::AbortOnDropHandle;

/// The delay before the first restart; each further one doubles it.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// The longest delay between restarts.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// After so long without a failure, the count begins anew.
pub(super) const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// From this many failures in a row on, a child counts as failing.
const FAILING_FROM: u32 = 5;

/// How often a child failed lately.
#[derive(Debug, Default)]
pub(super) struct Failures {
    in_a_row: u32,
    last: Option<Instant>,
}

impl Failures {
    /// Counts a failure at `now` and says how long to wait before the restart.
    pub fn count(&mut self, now: Instant) -> Duration {
        if self.last.is_some_and(|last| now.duration_since(last) > FORGIVEN_AFTER) {
            self.in_a_row = 0;
        }
        self.last = Some(now);
        self.in_a_row = self.in_a_row.saturating_add(1);
        BACKOFF_MIN.saturating_mul(1 << (self.in_a_row - 1).min(16)).min(BACKOFF_MAX)
    }

    /// Whether it fails again and again, also lately.
    pub fn is_failing(&self, now: Instant) -> bool {
        self.in_a_row >= FAILING_FROM && self.last.is_some_and(|last| now.duration_since(last) <= FORGIVEN_AFTER)
    }
}

/// Runs `task` in a task of its own, again and again after failures, until it ends without one or the returned handle is dropped.
pub(super) fn keep_running<T, F, E>(name: &'static str, task: T) -> AbortOnDropHandle<()>
where
    T: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut failures = Failures::default();
        loop {
            let error = match AbortOnDropHandle::new(tokio::spawn(task())).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            let delay = failures.count(Instant::now());
            tracing::error!(name, error, retry_in_ms = delay.as_millis() as u64, "task failed, restarting it");
            tokio::time::sleep(delay).await;
        }
    }))
}

/// Runs `task` beside `actor`. When the task panics the actor stops, so that its supervisor starts both anew.
pub(super) fn beside<M: Message>(actor: ActorRef<M>, task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = AbortOnDropHandle::new(tokio::spawn(task)).await {
            actor.stop(Some(error.to_string()));
        }
    }))
}

/// Runs `work` on a thread that may block; a panic there goes on here. `None`: the runtime stops.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_are_forgiven() {
        let start = Instant::now();
        let mut failures = Failures::default();
        let delays: Vec<_> = (0..20).map(|_| failures.count(start)).collect();
        assert_eq!(delays[0], BACKOFF_MIN);
        assert!(delays.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(delays[19], BACKOFF_MAX);
        assert!(failures.is_failing(start));
        assert!(!failures.is_failing(start + FORGIVEN_AFTER * 2));
        assert_eq!(failures.count(start + FORGIVEN_AFTER * 2), BACKOFF_MIN);
    }
}
