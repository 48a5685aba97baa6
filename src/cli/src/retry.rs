//! How long to wait before trying again: doubling, with jitter, bounded. Knows nothing of what is tried.

use std::time::Duration;

/// Waits that double from the first to the longest.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Begins with `first`; no wait is longer than `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// The next wait: between half of it and all of it, so that clients that lost the same server do not return together.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (self.next * 2).min(self.longest);
        wait.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_stay_bounded() {
        let longest = Duration::from_millis(800);
        let mut backoff = Backoff::new(Duration::from_millis(100), longest);
        let waits: Vec<_> = (0..20).map(|_| backoff.wait()).collect();
        assert!(waits[0] >= Duration::from_millis(50) && waits[0] <= Duration::from_millis(100));
        assert!(waits.iter().all(|wait| *wait <= longest) && waits[19] >= longest / 2);
    }
}
