//! The rules of planning, each tried on many environments.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*, strategy::Strategy as Generator};

use crate::rollout::plan::*;
use crate::{
    pipeline_file::{PipelineFile, Strategy},
    units::Millis,
};

const ALL: Amount = share(100);

const fn share(percent: u32) -> Amount {
    Amount::Share(BasisPoints(percent * 100))
}

fn target(index: u32, region: &str, zone: &str) -> PlanTarget {
    PlanTarget { index, region: region.to_owned(), zone: zone.to_owned(), serves_healthy: true, reachable: true }
}

/// `count` targets in turn in two regions with `zones` zones each.
fn fleet(count: u32, zones: u32) -> Vec<PlanTarget> {
    let place = |index: u32| target(index, ["east", "west"][(index / zones % 2) as usize], &format!("z{}", index % zones));
    (0..count).map(place).collect()
}

fn canary(targets: Vec<PlanTarget>) -> PlanInput {
    PlanInput {
        rollout_seed: 7,
        targets,
        strategy: Strategy::Canary,
        waves: vec![Amount::Count(1), share(10), share(50), ALL],
        max_unavailable: share(10),
        max_failures: share(2),
        spread_zone: false,
        by_region: false,
    }
}

#[test]
fn six_hosts_work_as_well_as_fifty_thousand() {
    let six = plan(&canary(fleet(6, 1))).unwrap();
    assert_eq!((six.sizes(), six.max_unavailable), (vec![1, 2, 3], 1), "10 % of six adds none to the first");
    let many = plan(&canary(fleet(50_000, 3))).unwrap();
    assert_eq!((many.sizes(), many.max_unavailable), (vec![1, 4999, 20_000, 25_000], 5000));
    let may_fail: Vec<u32> = many.waves.iter().map(|wave| wave.max_failures).collect();
    assert_eq!(may_fail, [0, 100, 500, 1000], "2 % of what was attempted, and not of what is there");
    assert_eq!(plan(&canary(fleet(1, 1))).unwrap().sizes(), [1]);
}

#[test]
fn rolling_is_one_wave() {
    let rolling = plan(&PlanInput { strategy: Strategy::Rolling, waves: vec![], ..canary(fleet(40, 2)) }).unwrap();
    assert_eq!((rolling.sizes(), rolling.max_unavailable), (vec![40], 4));
    let by_region = plan(&PlanInput { strategy: Strategy::Rolling, by_region: true, ..canary(fleet(40, 2)) }).unwrap();
    assert_eq!(by_region.sizes(), [20, 20]);
}

#[test]
fn one_region_is_finished_before_the_next() {
    let mut targets: Vec<_> = (0..20).map(|index| target(index, "big", "a")).collect();
    targets.extend((20..25).map(|index| target(index, "small", "a")));
    let planned = plan(&PlanInput { by_region: true, spread_zone: true, ..canary(targets) }).unwrap();
    let regions: Vec<_> = planned.waves.iter().map(|wave| wave.region.as_deref().unwrap()).collect();
    assert_eq!(
        regions,
        ["small", "small", "small", "big", "big", "big", "big"],
        "the smaller first: a mistake meets fewer users"
    );
    assert_eq!(planned.sizes(), [1, 2, 2, 1, 1, 8, 10]);
    assert_eq!(planned.zones.len(), 2, "zone a of one region is not zone a of the other");
}

#[test]
fn the_first_wave_tells_something() {
    let mut targets = fleet(12, 3);
    for target in &mut targets {
        target.reachable = target.index >= 2;
        target.serves_healthy = target.index >= 9;
    }
    let planned = plan(&PlanInput { waves: vec![Amount::Count(3), ALL], ..canary(targets) }).unwrap();
    assert_eq!(planned.waves[0].targets.iter().collect::<Vec<_>>(), [9, 10, 11]);
}

#[test]
fn what_cannot_be_planned_is_refused() {
    assert_eq!(plan(&canary(vec![])), Err(PlanError::NoTargets));
    assert_eq!(plan(&canary(vec![target(3, "a", "a"), target(3, "b", "b")])), Err(PlanError::DuplicateTarget(3)));
    assert_eq!(plan(&PlanInput { waves: vec![share(50)], ..canary(fleet(4, 1)) }), Err(PlanError::WavesEndEarly));
    assert_eq!(plan(&PlanInput { waves: vec![ALL; 33], ..canary(fleet(4, 1)) }), Err(PlanError::TooManyWaves(33)));
}

#[test]
fn a_plan_is_small_and_comes_back_from_state() {
    let planned = plan(&canary(fleet(50_000, 3))).unwrap();
    let bytes = rmp_serde::to_vec(&planned).unwrap();
    let back: Plan = rmp_serde::from_slice(&bytes).unwrap();
    assert_eq!((&back, back.digest()), (&planned, planned.digest()));
    assert!(bytes.len() < 100_000, "{} bytes", bytes.len());
    let other = plan(&PlanInput { rollout_seed: 8, ..canary(fleet(50_000, 3)) }).unwrap();
    assert_ne!(other.digest(), planned.digest());
}

#[test]
fn the_least_times_are_sums_of_what_must_pass() {
    let text = "[service.a]\ncommand = ['a']\nports = { http = 80 }\n[deploy.x]\nbake = '5m'";
    let file = PipelineFile::parse(text).unwrap();
    let timing = Timing::of(&file, &file.deploy_to(&"x".parse().unwrap()));
    assert_eq!((timing.in_place, timing.batch_deadline), (true, Millis::from_secs(60 + 10 + 30 + 90 + 10)));
    let planned = plan(&canary(fleet(100, 2))).unwrap();
    // Waves of 1, 9, 40 and 50 in batches of 10: 1 + 1 + 4 + 5 times 10 s drain and 10 s proof; three bakes.
    assert_eq!(least_duration(&planned, &timing), Millis::from_secs(11 * 20 + 3 * 300));
    assert_eq!(least_rollback_duration(&planned, &timing), Millis::from_secs(2 * 20));
    assert_eq!(wave_deadline(&planned, 3, &timing), Millis::from_secs(5 * 200));
    let beside = Timing { in_place: false, batched: false, ..timing };
    assert_eq!(least_duration(&planned, &beside), Millis::from_secs(4 * 10 + 3 * 300), "each wave at once");
    assert_eq!(wave_deadline(&planned, 3, &beside), Millis::from_secs(200));
    assert_eq!(least_rollback_duration(&planned, &beside), Millis::from_secs(10));
    let by_zone = plan(&PlanInput { spread_zone: true, ..canary(fleet(100, 2)) }).unwrap();
    assert!(least_duration(&by_zone, &timing) > Millis::from_secs(11 * 20 + 3 * 300), "no batch has two zones");
}

fn bitmap(members: impl IntoIterator<Item = u32>) -> RoaringBitmap {
    members.into_iter().collect()
}

/// A state of ten targets, zones 0..5 and 5..10, with a budget of three.
fn pick(started: &[u32], settled: &[u32], down_before: &[u32], spread_zone: bool) -> Vec<u32> {
    let set = |list: &[u32]| bitmap(list.iter().copied());
    let state = BatchInput {
        members: &bitmap(0..10),
        started: &set(started),
        settled: &set(settled),
        down_before: &set(down_before),
        zones: &[bitmap(0..5), bitmap(5..10)],
        max_unavailable: 3,
        spread_zone,
    };
    next_batch(&state).iter().collect()
}

#[test]
fn the_budget_is_kept_and_repairing_is_free() {
    assert_eq!(pick(&[], &[], &[], false), [0, 1, 2]);
    assert_eq!(pick(&[0, 1, 2], &[1], &[], false), [3]);
    assert_eq!(pick(&[0, 1, 2], &[], &[], false), [0; 0]);
    assert_eq!(pick(&[], &[], &[7, 8, 9], false), [0, 1, 2, 7, 8, 9], "already down");
    assert_eq!(pick(&[7], &[], &[7], false), [0, 1, 2], "being repaired costs nothing either");
}

#[test]
fn never_two_zones_at_once() {
    assert_eq!(pick(&[4, 3, 2, 1], &[1, 2, 3, 4], &[], true), [0], "what is left of the first zone, and no more");
    assert_eq!(pick(&[0, 1, 2, 3, 4], &[0, 1, 2, 3], &[], true), [0; 0], "the first zone is not done");
    assert_eq!(pick(&[0, 1, 2, 3, 4], &[0, 1, 2, 3, 4], &[], true), [5, 6, 7]);
    assert_eq!(pick(&[0, 5], &[], &[], true), [0; 0], "two zones are disturbed: wait");
    assert_eq!(pick(&[99], &[], &[], true), [0; 0], "so is a zone that is not known");
    assert_eq!(pick(&[], &[], &[9], true), [0, 1, 2, 9], "repairing is free in any zone");
}

fn targets() -> impl Generator<Value = Vec<PlanTarget>> {
    let one = (0..3u8, 0..4u8, any::<bool>(), prop::bool::weighted(0.9));
    vec(one, 1..120).prop_map(|places| {
        let make = |(index, (region, zone, serves_healthy, reachable)): (usize, (u8, u8, bool, bool))| PlanTarget {
            serves_healthy,
            reachable,
            ..target(index as u32, &format!("r{region}"), &format!("z{zone}"))
        };
        places.into_iter().enumerate().map(make).collect()
    })
}

fn input() -> impl Generator<Value = PlanInput> {
    let amount = prop_oneof![(0..20u32).prop_map(Amount::Count), (0..=100u32).prop_map(share)];
    let waves = vec(amount.clone(), 0..5).prop_map(|mut waves| {
        waves.push(ALL);
        waves
    });
    (any::<u64>(), targets(), waves, amount.clone(), amount, any::<bool>(), any::<bool>()).prop_map(
        |(rollout_seed, targets, waves, max_unavailable, max_failures, spread_zone, by_region)| PlanInput {
            rollout_seed,
            targets,
            strategy: Strategy::Canary,
            waves,
            max_unavailable,
            max_failures,
            spread_zone,
            by_region,
        },
    )
}

proptest! {
    #[test]
    fn each_target_is_in_exactly_one_wave(input in input()) {
        let planned = plan(&input).unwrap();
        let mut seen = RoaringBitmap::new();
        for wave in &planned.waves {
            prop_assert!(!wave.targets.is_empty() && wave.targets.is_disjoint(&seen));
            seen |= &wave.targets;
        }
        prop_assert_eq!(seen.len(), input.targets.len() as u64);
        let zoned: u64 = planned.zones.iter().map(RoaringBitmap::len).sum();
        prop_assert_eq!(zoned, if input.spread_zone { seen.len() } else { 0 });
        prop_assert!(planned.max_unavailable >= 1);
    }

    #[test]
    fn no_wave_goes_beyond_what_was_asked(input in input()) {
        let planned = plan(&PlanInput { by_region: false, ..input.clone() }).unwrap();
        let total = planned.total;
        let asked: BTreeSet<u32> = input.waves.iter().map(|wave| wave.rounded_up(total)).collect();
        let mut done = 0;
        for size in planned.sizes() {
            done += size;
            prop_assert!(asked.contains(&done), "{done} of {asked:?}");
        }
    }

    #[test]
    fn the_order_of_the_targets_does_not_matter(input in input(), rotation in 0..100usize) {
        let mut turned = input.clone();
        let len = turned.targets.len();
        turned.targets.rotate_left(rotation % len);
        let (planned, again) = (plan(&input).unwrap(), plan(&turned).unwrap());
        prop_assert_eq!(planned.digest(), again.digest());
        prop_assert_eq!(planned, again);
    }

    #[test]
    fn the_first_wave_has_as_many_zones_as_it_can(input in input()) {
        let mut input = PlanInput { by_region: false, spread_zone: true, ..input };
        input.targets.iter_mut().for_each(|target| (target.reachable, target.serves_healthy) = (true, true));
        let planned = plan(&input).unwrap();
        let first = &planned.waves[0].targets;
        let met = planned.zones.iter().filter(|zone| !zone.is_disjoint(first)).count();
        prop_assert_eq!(met, planned.zones.len().min(first.len() as usize));
    }

    #[test]
    fn later_waves_have_the_zones_in_proportion(seed: u64, count in 50..400u32, zones in 1..5u32) {
        let waves = vec![Amount::Count(1), share(50), ALL];
        let input = PlanInput { rollout_seed: seed, waves, spread_zone: true, ..canary(fleet(count, zones)) };
        let planned = plan(&input).unwrap();
        for zone in &planned.zones {
            let half = zone.intersection_len(&planned.waves[1].targets) as f64;
            prop_assert!((half - zone.len() as f64 / 2.0).abs() <= 2.0, "{half} of {}", zone.len());
        }
    }

    /// Whatever completes, fails, disappears and comes back, in whatever order: the invariant holds after each batch.
    #[test]
    fn the_invariant_holds_whatever_happens(input in input(), steps in vec((0..6u8, any::<u32>()), 0..200)) {
        let planned = plan(&input).unwrap();
        let mut down_before = bitmap(input.targets.iter().filter(|target| !target.serves_healthy).map(|target| target.index));
        let mut unreachable = bitmap(input.targets.iter().filter(|target| !target.reachable).map(|target| target.index));
        // What is really so: those that serve nothing because they were changed.
        let (mut started, mut settled, mut stopped) = (RoaringBitmap::new(), RoaringBitmap::new(), RoaringBitmap::new());
        let mut wave = 0;
        for (kind, choice) in steps {
            let pick = |set: &RoaringBitmap| set.select(choice.checked_rem(set.len() as u32).unwrap_or(0));
            let converging = &started - &settled;
            match kind {
                0 => {
                    let state = BatchInput {
                        members: &(&planned.waves[wave].targets - &unreachable),
                        started: &started,
                        settled: &settled,
                        down_before: &down_before,
                        zones: &planned.zones,
                        max_unavailable: planned.max_unavailable,
                        spread_zone: planned.spread_zone,
                    };
                    let batch = next_batch(&state);
                    prop_assert!(batch.is_disjoint(&started) && batch.is_subset(state.members) && batch.is_disjoint(&unreachable));
                    // The worst case: all of them stop at once.
                    stopped |= &batch - &down_before;
                    let now_started = &started | &batch;
                    let risked = at_risk(&BatchInput { started: &now_started, ..state });
                    prop_assert!(risked.is_superset(&stopped));
                    started = now_started;
                }
                1 | 2 => if let Some(target) = pick(&converging) {
                    settled.insert(target);
                    stopped.remove(target);
                    down_before.remove(target);
                },
                3 => if let Some(target) = pick(&planned.waves[wave].targets) { unreachable.insert(target); },
                4 => if let Some(target) = pick(&unreachable) { unreachable.remove(target); },
                _ => if planned.waves[wave].targets.is_subset(&(&settled | &unreachable)) && wave + 1 < planned.waves.len() { wave += 1 },
            }
            prop_assert!(stopped.len() <= u64::from(planned.max_unavailable));
            let disturbed = planned.zones.iter().filter(|zone| !zone.is_disjoint(&stopped)).count();
            prop_assert!(!planned.spread_zone || disturbed <= 1, "{disturbed} zones at once");
        }
    }

    /// Without failures every wave finishes: the rule never blocks itself.
    #[test]
    fn a_wave_without_failures_ends(input in input()) {
        let planned = plan(&input).unwrap();
        let none = RoaringBitmap::new();
        let mut settled = RoaringBitmap::new();
        for wave in &planned.waves {
            let mut rounds = 0;
            while !wave.targets.is_subset(&settled) {
                let state = BatchInput {
                    members: &wave.targets,
                    started: &settled,
                    settled: &settled,
                    down_before: &none,
                    zones: &planned.zones,
                    max_unavailable: planned.max_unavailable,
                    spread_zone: planned.spread_zone,
                };
                let batch = next_batch(&state);
                prop_assert!(!batch.is_empty());
                settled |= batch;
                rounds += 1;
            }
            prop_assert_eq!(rounds, batches(&wave.targets, planned.max_unavailable, &planned.zones, planned.spread_zone));
        }
    }
}
