//! Which instance gets a request: own zone first, the less loaded of two random ones, an ejected one only when no other is left.
//! Knows nothing of HTTP.
//!
//! Two random choices: Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, 2001. It spreads load almost as
//! well as comparing all of them, and many gateways do not all choose the same one.

use std::{net::SocketAddr, sync::Arc};

use super::{endpoint::Endpoint, measure::ReleaseMeter};
use swell_model::ids::ReleaseId;

/// An instance that takes requests.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub release: Arc<ReleaseId>,
    pub endpoint: Arc<Endpoint>,
    /// Counts of the release.
    pub meter: Arc<ReleaseMeter>,
}

/// The instances of one service.
#[derive(Debug, Default)]
pub struct Candidates {
    /// In the gateway's zone.
    pub near: Vec<Candidate>,
    /// In other zones.
    pub far: Vec<Candidate>,
}

impl Candidates {
    /// Chooses an instance that is not among `tried`, if there is one; `None` only without any instance. Ejected instances are used
    /// when no other is left, so the last one stays in use.
    pub fn pick(&self, tried: &[SocketAddr], now_ms: u64) -> Option<&Candidate> {
        let fresh = |c: &Candidate| !tried.contains(&c.endpoint.address);
        let usable = |c: &Candidate| fresh(c) && !c.endpoint.is_ejected(now_ms);
        less_loaded_of_two(&self.near, usable)
            .or_else(|| less_loaded_of_two(&self.far, usable))
            .or_else(|| less_loaded_of_two(&self.near, fresh))
            .or_else(|| less_loaded_of_two(&self.far, fresh))
            .or_else(|| less_loaded_of_two(&self.near, |_| true))
            .or_else(|| less_loaded_of_two(&self.far, |_| true))
    }

    /// All instances, those of the own zone first.
    pub fn iter(&self) -> impl Iterator<Item = &Candidate> {
        self.near.iter().chain(&self.far)
    }
}

fn less_loaded_of_two(list: &[Candidate], allowed: impl Fn(&Candidate) -> bool) -> Option<&Candidate> {
    if list.len() <= 1 {
        return list.first().filter(|only| allowed(only));
    }
    let (first, second) = two_of(list.len());
    if allowed(&list[first]) && allowed(&list[second]) {
        return Some(less_loaded(&list[first], &list[second]));
    }
    // All are compared only when a draw met one that is not allowed.
    let rest: Vec<&Candidate> = list.iter().filter(|c| allowed(c)).collect();
    match rest.len() {
        0 => None,
        1 => Some(rest[0]),
        count => {
            let (first, second) = two_of(count);
            Some(less_loaded(rest[first], rest[second]))
        }
    }
}

/// Draws two different indices below `count`, which is at least 2.
fn two_of(count: usize) -> (usize, usize) {
    let first = fastrand::usize(..count);
    let second = fastrand::usize(..count - 1);
    (first, if second >= first { second + 1 } else { second })
}

fn less_loaded<'a>(a: &'a Candidate, b: &'a Candidate) -> &'a Candidate {
    if b.endpoint.in_flight() < a.endpoint.in_flight() { b } else { a }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::endpoint::FAILURES_BEFORE_EJECTION;

    fn candidate(port: u16) -> Candidate {
        let endpoint = Arc::new(Endpoint::new(([127, 0, 0, 1], port).into()).unwrap());
        Candidate { release: Arc::new("shop@1".parse().unwrap()), endpoint, meter: Arc::default() }
    }

    fn eject(candidate: &Candidate) {
        for _ in 0..FAILURES_BEFORE_EJECTION {
            candidate.endpoint.failed(1);
        }
        assert!(candidate.endpoint.is_ejected(2));
    }

    fn port(candidates: &Candidates, tried: &[SocketAddr]) -> u16 {
        candidates.pick(tried, 2).unwrap().endpoint.address.port()
    }

    #[test]
    fn other_zone_is_used_only_when_own_zone_is_ejected() {
        let candidates = Candidates { near: vec![candidate(1), candidate(2)], far: vec![candidate(3)] };
        assert!((0..100).all(|_| port(&candidates, &[]) != 3));
        candidates.near.iter().for_each(eject);
        assert!((0..100).all(|_| port(&candidates, &[]) == 3));
    }

    #[test]
    fn last_instance_stays_in_use_when_ejected_or_tried() {
        let candidates = Candidates { near: vec![candidate(1)], far: vec![] };
        eject(&candidates.near[0]);
        assert_eq!(port(&candidates, &[]), 1);
        assert_eq!(port(&candidates, &[candidates.near[0].endpoint.address]), 1);
        assert!(Candidates::default().pick(&[], 2).is_none());
    }

    #[test]
    fn tried_instance_is_avoided_while_there_is_another() {
        let candidates = Candidates { near: vec![candidate(1), candidate(2)], far: vec![] };
        let tried = [candidates.near[0].endpoint.address];
        assert!((0..100).all(|_| port(&candidates, &tried) == 2));
    }

    #[test]
    fn load_is_spread_evenly() {
        let candidates = Candidates { near: (1..=10).map(candidate).collect(), far: vec![] };
        let guards: Vec<_> = (0..1000).map(|_| candidates.pick(&[], 2).unwrap().endpoint.begin()).collect();
        let most = candidates.iter().map(|c| c.endpoint.in_flight()).max().unwrap();
        assert!(most <= 105, "{most} of {} on one of ten", guards.len());
    }
}
