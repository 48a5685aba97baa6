//! `swell gateway`: the proxy, connected to the servers.

use anyhow::Result;
use swell_gateway::{Gateway, GatewayConfig};
use tokio_util::sync::CancellationToken;

use super::open_files_max;

/// Runs a gateway until `stop`.
pub async fn run(config: GatewayConfig, stop: CancellationToken) -> Result<()> {
    open_files_max();
    let gateway = Gateway::bind(config).await?;
    for address in gateway.addresses() {
        tracing::info!(%address, "gateway is ready");
    }
    gateway.run(stop).await;
    Ok(())
}
