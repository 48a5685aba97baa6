//! `swell agent`: makes this machine a target.

use anyhow::{Result, bail};
use groundswell::{
    agent::{Agent, AgentOptions},
    runner::isolation,
};
use tokio_util::sync::CancellationToken;

use super::passable_folder;

/// Runs an agent until `stop`. What it started goes on without it.
pub async fn run(mut options: AgentOptions, stop: CancellationToken) -> Result<()> {
    passable_folder(&options.data_dir)?;
    let report = tokio::task::spawn_blocking(isolation::probe).await?;
    match &report.level {
        isolation::Level::Full => options.allow_unisolated = false,
        isolation::Level::None { why } if options.allow_unisolated => {
            tracing::warn!(why, "SERVICES ARE NOT ISOLATED: no control groups, no limits, no user of their own");
        }
        isolation::Level::None { why } => {
            let fixes: Vec<&str> = report.checks.iter().filter(|check| check.required).filter_map(|check| check.fix.as_deref()).collect();
            bail!("services cannot be isolated on this machine ({why}): {}; `swell doctor` shows every check", fixes.join("; "));
        }
    }
    let agent = Agent::open(options).await?;
    agent.run(stop).await;
    Ok(())
}
