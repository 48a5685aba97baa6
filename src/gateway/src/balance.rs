//! Which instance gets a request: same zone first, the less loaded of two random ones, never one that is left alone while
//! another will do. Knows nothing of HTTP.
//!
//! Two random choices: Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, 2001. It spreads load almost as
//! well as looking at all of them, without the herd that many gateways looking for the one best would make.

use std::{net::SocketAddr, sync::Arc};

use super::{endpoint::Endpoint, measure::ReleaseMeter};

/// An instance that may be given requests.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Where it is.
    pub endpoint: Arc<Endpoint>,
    /// Where what it does is counted.
    pub meter: Arc<ReleaseMeter>,
}

/// The instances of one service.
#[derive(Debug, Default)]
pub struct Candidates {
    /// Those in the gateway's zone.
    pub near: Vec<Candidate>,
    /// The others.
    pub far: Vec<Candidate>,
}

impl Candidates {
    /// Chooses one that is not among `tried`, if there is any such; `None` only when there are no instances at all.
    /// Those left alone are used when nothing else is left, so the last one is never given up.
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

    /// All of them.
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
    // Only when a draw met one that is not allowed are all of them looked at.
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

/// Two different indices below `count`, which is at least 2.
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
        Candidate { endpoint, meter: Arc::default() }
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
    fn another_zone_is_used_only_when_the_own_one_fails() {
        let candidates = Candidates { near: vec![candidate(1), candidate(2)], far: vec![candidate(3)] };
        assert!((0..100).all(|_| port(&candidates, &[]) != 3));
        candidates.near.iter().for_each(eject);
        assert!((0..100).all(|_| port(&candidates, &[]) == 3));
    }

    #[test]
    fn the_last_one_is_never_given_up() {
        let candidates = Candidates { near: vec![candidate(1)], far: vec![] };
        eject(&candidates.near[0]);
        assert_eq!(port(&candidates, &[]), 1);
        assert_eq!(port(&candidates, &[candidates.near[0].endpoint.address]), 1);
        assert!(Candidates::default().pick(&[], 2).is_none());
    }

    #[test]
    fn a_request_is_not_sent_to_the_same_one_again_while_there_is_another() {
        let candidates = Candidates { near: vec![candidate(1), candidate(2)], far: vec![] };
        let tried = [candidates.near[0].endpoint.address];
        assert!((0..100).all(|_| port(&candidates, &tried) == 2));
    }

    #[test]
    fn load_evens_out() {
        let candidates = Candidates { near: (1..=10).map(candidate).collect(), far: vec![] };
        let guards: Vec<_> = (0..1000).map(|_| candidates.pick(&[], 2).unwrap().endpoint.begin()).collect();
        let most = candidates.iter().map(|c| c.endpoint.in_flight()).max().unwrap();
        assert!(most <= 105, "{most} of {} on one of ten", guards.len());
    }
}
