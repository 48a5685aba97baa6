//! `swell agent`: makes this machine a target.

use anyhow::Result;
use swell_agent::{Agent, AgentOptions};
use tokio_util::sync::CancellationToken;

/// Runs an agent until `stop`. Instances that it started keep running.
pub async fn run(options: AgentOptions, stop: CancellationToken) -> Result<()> {
    let agent = tokio::task::spawn_blocking(move || Agent::open(options)).await??;
    agent.run(stop).await?;
    Ok(())
}
