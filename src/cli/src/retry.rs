//! Exponential backoff with jitter and an upper bound. Knows nothing of what is retried.

use std::time::Duration;

/// Delays that double from the first up to the longest.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Starts with `first`; no delay exceeds `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// The next delay, randomly shortened by up to half, so that clients of one failed server do not reconnect together.
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
    fn backoff_grows_and_stays_bounded() {
        let longest = Duration::from_millis(800);
        let mut backoff = Backoff::new(Duration::from_millis(100), longest);
        let waits: Vec<_> = (0..20).map(|_| backoff.wait()).collect();
        assert!(waits[0] >= Duration::from_millis(50) && waits[0] <= Duration::from_millis(100));
        assert!(waits.iter().all(|wait| *wait <= longest) && waits[19] >= longest / 2);
    }
}
