//! One server with 17,000 agents, whose sessions are real and whose instances are simulated in this process: memory, processor time,
//! rollouts, going back, and a server that is killed. Then the same beside 33,000 more targets, 20 pipelines and 500 open rollouts, which
//! must not make a step much slower.

mod measure;
mod scale;

use std::time::Duration;

use anyhow::Result;

use self::{
    measure::{Figure, figures},
    scale::Scale,
};
use crate::{Setup, report::Report, sample::Paired};

/// How long any step may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(600);

pub async fn run(setup: &Setup, report: Report) -> Result<()> {
    report.versions(&[("swell-loadgen", env!("CARGO_PKG_VERSION").to_owned())]);
    let base = Scale::base(setup.quick);
    let alone = figures(setup, base).await?;
    for Figure { case, value, unit, goal } in &alone {
        report.alone(case, &[*value], unit, &format!("{} agents; goal: {goal}", base.agents))?;
    }
    let large = Scale::large(setup.quick);
    let note = format!(
        "{} agents of {} targets, {} pipelines, {} open rollouts, beside the figure above; goal: ≤ 1.5 ×",
        large.agents,
        large.agents + large.others,
        large.pipelines,
        large.open_rollouts()
    );
    for (with, without) in figures(setup, large).await?.iter().zip(&alone) {
        let pair = Paired { ours: with.value, peer: without.value };
        report.compared(&format!("{}, large", with.case), &[pair], with.unit, &note)?;
    }
    Ok(())
}
