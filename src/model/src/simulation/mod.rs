//! A seeded simulation of the rules: agents that fail, leaders that are deposed, people who interfere, and the invariants checked
//! after every command. `SEED=… cargo test simulation` repeats one history; `SEEDS=…` runs so many.

#![allow(clippy::unwrap_used)]

mod agent;
mod history;
mod invariants;
pub(crate) mod plant;
mod random;

use std::collections::{BTreeMap, BTreeSet};

use history::History;
use plant::Plant;

use crate::{build::BuildState, rollout::RolloutState};

/// How many applied commands a history has before its faults stop.
const COMMANDS: usize = 250;

/// Arrows that the state machine has and the rules never take: a wave that bakes is not the last, and a rollback does not bake.
const IMPOSSIBLE: [(RolloutState, RolloutState); 2] =
    [(RolloutState::CanaryCheck, RolloutState::Deployed), (RolloutState::CanaryCheck, RolloutState::Failed)];

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[test]
fn invariants_hold_in_every_history_and_everything_ends() {
    let one = number("SEED");
    let seeds = one.map_or(0..number("SEEDS").unwrap_or(60), |seed| seed..seed + 1);
    let (mut seen, mut applied, mut rejected) = (BTreeSet::new(), 0, BTreeMap::<_, usize>::new());
    for seed in seeds.clone() {
        let mut history = History::new(seed, None);
        let outcome = history.run(COMMANDS);
        assert!(outcome.is_ok(), "SEED={seed}: {}", outcome.unwrap_err());
        seen.extend(std::mem::take(&mut history.checks.transitions));
        applied += history.applied;
        for (code, count) in history.rejected {
            *rejected.entry(code).or_default() += count;
        }
    }
    let all = arrows();
    let missed: Vec<_> = all.iter().filter(|arrow| !seen.contains(*arrow)).collect();
    let share = 100 * (all.len() - missed.len()) / all.len();
    println!("{} histories, {applied} commands, {share} % of {} transitions; rejected: {rejected:?}", seeds.count(), all.len());
    println!("not seen: {missed:?}");
    assert!(one.is_some() || share >= 85, "only {share} % of the transitions were covered; not {missed:?}");
}

#[test]
fn every_planted_bug_is_noticed() {
    for plant in Plant::ALL {
        let run = |seed| History::new(seed, Some(plant)).run(COMMANDS).err().map(|why| (seed, why));
        // Some break more than the invariant that they are for; the notice of that one counts.
        let noticed = (0..200).filter_map(run).find(|(_, why)| why.starts_with(plant.notice()));
        let (seed, why) = noticed.unwrap_or_else(|| panic!("{plant:?} was not noticed"));
        println!("{plant:?}: seed {seed}: {why}");
    }
}

/// Every arrow of both halves of the state machine.
fn arrows() -> BTreeSet<(&'static str, String, String)> {
    let mut arrows = BTreeSet::from([("build", String::new(), BuildState::Queued.to_string())]);
    for from in BuildState::ALL {
        let nexts = BuildState::ALL.into_iter().filter(|next| from.may_become(*next));
        arrows.extend(nexts.map(|next| ("build", from.to_string(), next.to_string())));
    }
    for from in RolloutState::ALL {
        let nexts = RolloutState::ALL.into_iter().filter(|next| from.may_become(*next));
        arrows.extend(nexts.map(|next| ("rollout", from.to_string(), next.to_string())));
    }
    for impossible in IMPOSSIBLE {
        arrows.remove(&("rollout", impossible.0.to_string(), impossible.1.to_string()));
    }
    arrows
}
