//! In which order a rollout takes its targets: drawn by a seed, spread over zones. Knows nothing of waves but the length of
//! the first.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use crate::rollout::plan::{PlanInput, PlanTarget};

/// A target as the order sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub index: u32,
    /// 0: serves and can be reached; 1: can be reached; 2: cannot.
    class: u8,
    /// The number of its zone.
    zone: usize,
}

/// A region and a zone of it.
type ZoneName<'t> = (&'t str, &'t str);

/// The targets of each zone, sorted by region and zone.
pub(crate) fn zones(targets: &[PlanTarget]) -> Vec<(ZoneName<'_>, RoaringBitmap)> {
    let mut zones: BTreeMap<ZoneName<'_>, RoaringBitmap> = BTreeMap::new();
    for target in targets {
        zones.entry((&target.region, &target.zone)).or_default().insert(target.index);
    }
    zones.into_iter().collect()
}

/// The targets that go through their waves together, in the order in which they do: all of them, or region by region,
/// the smaller first, then by name.
pub(crate) fn regions(input: &PlanInput, zones: &[(ZoneName<'_>, RoaringBitmap)]) -> Vec<(Option<String>, Vec<Candidate>)> {
    let zone_numbers: BTreeMap<ZoneName<'_>, usize> =
        zones.iter().enumerate().map(|(number, (name, _))| (*name, number)).collect();
    let mut regions: BTreeMap<Option<&str>, Vec<Candidate>> = BTreeMap::new();
    for target in &input.targets {
        let class = match (target.reachable, target.serves_healthy) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        };
        let zone = zone_numbers.get(&(target.region.as_str(), target.zone.as_str())).copied().unwrap_or_default();
        let region = input.by_region.then_some(target.region.as_str());
        regions.entry(region).or_default().push(Candidate { index: target.index, class, zone });
    }
    let mut regions: Vec<_> = regions.into_iter().collect();
    regions.sort_by_key(|(_, candidates)| candidates.len());
    regions.into_iter().map(|(region, candidates)| (region.map(str::to_owned), candidates)).collect()
}

/// The order in which targets are taken. The first `first_len(count)` come from as many zones as possible, and from the
/// best class there is; the rest has the zones in proportion, and in each zone the better classes first.
pub(crate) fn draw(mut candidates: Vec<Candidate>, seed: u64, first_len: impl Fn(usize) -> usize) -> Vec<Candidate> {
    candidates.sort_by_key(|candidate| candidate.index);
    let mut random = SplitMix64(seed);
    shuffle(&mut candidates, &mut random);
    // Stable: within a class of a zone the shuffled order stays.
    candidates.sort_by_key(|candidate| (candidate.zone, candidate.class));
    let mut zone_turns: Vec<usize> = candidates.iter().map(|candidate| candidate.zone).collect();
    zone_turns.dedup();
    shuffle(&mut zone_turns, &mut random);
    let turns: BTreeMap<usize, usize> = zone_turns.into_iter().enumerate().map(|(turn, zone)| (zone, turn)).collect();
    let turn = |candidate: &Candidate| turns.get(&candidate.zone).copied().unwrap_or_default();

    let ranks = ranks(&candidates, |candidate| (candidate.zone, candidate.class));
    let mut by_round: Vec<(u8, u64, usize, Candidate)> =
        candidates.into_iter().zip(ranks).map(|(candidate, rank)| (candidate.class, rank, turn(&candidate), candidate)).collect();
    by_round.sort_by_key(|(class, rank, turn, _)| (*class, *rank, *turn));
    let rest = by_round.split_off(first_len(by_round.len()).min(by_round.len()));
    let first = by_round.into_iter().map(|(.., candidate)| candidate);

    let mut rest: Vec<Candidate> = rest.into_iter().map(|(.., candidate)| candidate).collect();
    rest.sort_by_key(|candidate| (candidate.zone, candidate.class));
    let ranks = self::ranks(&rest, |candidate| candidate.zone);
    let mut zone_len: BTreeMap<usize, u64> = BTreeMap::new();
    rest.iter().for_each(|candidate| *zone_len.entry(candidate.zone).or_default() += 1);
    // The middle of the stretch that a target takes of its zone, as a share of 2^32: all zones advance alike.
    let share =
        |candidate: &Candidate, rank: u64| (2 * rank + 1) * (1 << 31) / zone_len.get(&candidate.zone).copied().unwrap_or(1);
    let mut rest: Vec<(u64, usize, Candidate)> =
        rest.into_iter().zip(ranks).map(|(candidate, rank)| (share(&candidate, rank), turn(&candidate), candidate)).collect();
    rest.sort_by_key(|(share, turn, _)| (*share, *turn));
    first.chain(rest.into_iter().map(|(.., candidate)| candidate)).collect()
}

/// The number of each among its neighbours of the same group, from 0.
fn ranks<G: PartialEq>(candidates: &[Candidate], group: impl Fn(&Candidate) -> G) -> Vec<u64> {
    let mut ranks = Vec::with_capacity(candidates.len());
    for (at, candidate) in candidates.iter().enumerate() {
        let goes_on = at > 0 && group(&candidates[at - 1]) == group(candidate);
        ranks.push(if goes_on { ranks[at - 1] + 1 } else { 0 });
    }
    ranks
}

/// Steele, Lea and Flood's SplitMix64 (OOPSLA 2014), with Vigna's constants: small, and its sequence is fixed for all time,
/// which no library promises. It draws samples; it keeps no secrets.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (multiply-shift, Lemire 2019; its bias is below 2^-40 for the sizes here).
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// Fisher and Yates's shuffle, as Durstenfeld wrote it down.
fn shuffle<T>(items: &mut [T], random: &mut SplitMix64) {
    for at in (1..items.len()).rev() {
        items.swap(at, random.below(at + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        // From Vigna's reference implementation, seed 1234567.
        let mut random = SplitMix64(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }
}
