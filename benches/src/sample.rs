//! Medians, percentiles and pairs of measurements.

use std::time::Duration;

/// One round: both sides measured right after each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paired {
    pub ours: f64,
    pub peer: f64,
}

/// The middle value; of an even number, the mean of the middle two.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => values.get(middle).copied(),
        _ => Some((values.get(middle - 1)? + values.get(middle)?) / 2.0),
    }
}

/// The smallest value that `percent` of `values` do not exceed (nearest rank). Sorts `values`.
pub fn percentile(values: &mut [Duration], percent: f64) -> Option<Duration> {
    values.sort_unstable();
    let rank = (percent / 100.0 * values.len() as f64).ceil() as usize;
    values.get(rank.max(1) - 1).copied()
}

/// As milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{median, percentile};

    #[test]
    fn median_is_the_middle_or_the_mean_of_the_middle_two() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn percentile_is_the_nearest_rank() {
        let mut values: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut values, 50.0), Some(Duration::from_millis(100)));
        assert_eq!(percentile(&mut values, 99.0), Some(Duration::from_millis(198)));
        assert_eq!(percentile(&mut values[..1], 99.0), Some(Duration::from_millis(1)));
        assert_eq!(percentile(&mut [], 50.0), None);
    }
}
