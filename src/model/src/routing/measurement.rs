//! What a gateway measured of a release, second by second. Pure data; knows nothing of where it is gathered or judged.

use serde::{Deserialize, Serialize};

use super::table::ServiceKey;
use crate::ids::ReleaseId;

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
    pub service: ServiceKey,
    pub release: ReleaseId,
    /// Seconds since 1970-01-01T00:00:00Z by the gateway's clock.
    pub second: u64,
    pub counts: Counts,
}

/// Counts of attempts, answered or not. A request takes one attempt as a rule; one that failed at an instance and was answered by
/// another counts at both, so that retries do not hide a release whose instances fail.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Answers by class: 1xx, 2xx, 3xx, 4xx, 5xx.
    pub answers: [u64; 5],
    /// Attempts that the instance did not answer: refused, reset, timed out.
    pub unanswered: u64,
    /// Answers whose body was cut off, also counted in `answers`.
    pub broken: u64,
    /// Sum of the times until an answer's head, in microseconds.
    pub latency_us_sum: u64,
    /// Answers by the time until their head, in the buckets of [`LATENCY_BOUNDS_US`].
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

    /// All attempts, answered or not.
    pub fn requests(&self) -> u64 {
        self.answers.iter().sum::<u64>() + self.unanswered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_is_counted_in_first_bucket_that_holds_it() {
        let mut counts = Counts::default();
        for (status, latency_us) in [(200, 0), (200, 250), (404, 251), (503, u64::from(u32::MAX))] {
            counts.count_answer(status, latency_us);
        }
        assert_eq!(counts.answers, [0, 2, 0, 1, 1]);
        assert_eq!((counts.latency[0], counts.latency[1], counts.latency[LATENCY_BUCKETS - 1]), (2, 1, 1));
        assert_eq!(counts.requests(), 4);
    }
}
