//! What carrying out one command costs as the fleet grows: records read, bytes written and time, at 1,000, 10,000 and 50,000 targets.
//!
//! State is in memory, so that the numbers are the rules' own: how many records they touch. Bytes are those of the records as
//! MessagePack, which is how storage encodes them.

mod counting;
mod world;

use anyhow::{Context as _, Result};
use swell_model::{
    command::{Action, EnvironmentAction, FleetAction, RolloutAction},
    fleet::observation::Progress,
    rollout::Purpose,
};

use self::world::{Cost, ENVIRONMENT, World, info};
use crate::{
    Setup,
    report::Report,
    sample::{Paired, median, ms},
};

/// Targets at 1 ×, 10 × and 50 ×.
const SIZES: [u32; 3] = [1_000, 10_000, 50_000];

/// How often each command is carried out, each time on a copy of the same state.
const RUNS: usize = 7;

/// Targets in one batch of reports.
const BATCH: u32 = 100;

pub async fn run(setup: &Setup, report: Report) -> Result<()> {
    report.versions(&[]);
    let sizes = if setup.quick { [10, 100, 500] } else { SIZES };
    let mut smallest = Vec::new();
    for (place, size) in sizes.into_iter().enumerate() {
        let setup = setup.clone();
        // Not on the runtime's threads: it computes for seconds.
        let costs = tokio::task::spawn_blocking(move || costs(&setup, size)).await.context("a measurement panicked")??;
        if place == 0 {
            smallest.clone_from(&costs);
        }
        for ((name, cost), (_, least)) in costs.iter().zip(&smallest) {
            let case = format!("{name}, {size} targets");
            let note = format!("{} records read, {} bytes written; beside {} targets", cost.reads, cost.bytes, sizes[0]);
            report.compared(&case, &[Paired { ours: cost.time_ms, peer: least.time_ms }], "ms", &note)?;
        }
    }
    Ok(())
}

/// The median cost of a command.
#[derive(Debug, Clone, Copy)]
struct Measured {
    reads: u64,
    bytes: u64,
    time_ms: f64,
}

fn costs(setup: &Setup, size: u32) -> Result<Vec<(&'static str, Measured)>> {
    let mut world = World::with_fleet(size)?;
    let stable = world.import(1)?;
    let first = world.start(&stable)?;
    world.complete(first)?;
    let next = world.import(2)?;
    let mut costs = Vec::new();
    let mut add = |name: &'static str, world: &World, action: Action| -> Result<()> {
        let runs = (0..setup.rounds(RUNS)).map(|_| world.clone().apply(action.clone())).collect::<Result<Vec<_>>>();
        costs.push((name, measured(&runs.with_context(|| name.to_owned())?)?));
        Ok(())
    };

    add("a target joins", &world, FleetAction::Join { info: info(size)? }.into())?;
    let connected = (0..size - 1).collect();
    add("a session ends", &world, FleetAction::Presence { server: 1, connected }.into())?;
    let why = "measured".to_owned();
    let freeze = EnvironmentAction::Freeze { name: ENVIRONMENT.parse()?, why: why.clone() };
    add("an environment is frozen", &world, freeze.into())?;
    let start = RolloutAction::Start {
        environment: ENVIRONMENT.parse()?,
        release: next.clone(),
        purpose: Purpose::Deploy,
        why: None,
        if_plan: None,
    };
    add("a rollout starts", &world, start.into())?;
    let rollout = world.start(&next)?;
    let all = || (0..size).collect();
    let change = RolloutAction::ChangeTargets { rollout, targets: all(), unreachable: Default::default() };
    add("all targets are told", &world, change.clone().into())?;
    world.apply(change.into())?;
    let reported = world.reports(0..BATCH.min(size), &next, Progress::Healthy)?;
    add("100 targets report", &world, reported.into())?;
    let abort = RolloutAction::Abort { rollout, why };
    add("a rollout is aborted", &world, abort.clone().into())?;
    world.apply(abort.into())?;
    add("all targets are told to go back", &world, RolloutAction::RevertTargets { rollout, targets: all() }.into())?;
    Ok(costs)
}

fn measured(runs: &[Cost]) -> Result<Measured> {
    let times: Vec<f64> = runs.iter().map(|cost| ms(cost.time)).collect();
    let first = runs.first().context("nothing was measured")?;
    Ok(Measured { reads: first.reads, bytes: first.bytes, time_ms: median(&times).context("nothing was measured")? })
}
