//! `swell cluster`: the servers of the cluster.

use serde_json::{Value, json};

use super::or_dash;
use crate::{
    context::Context,
    failure::{Exit, Result},
    human,
    output::info,
    views::{self, Cluster, Ready},
};

/// Subcommands of `swell cluster`
#[derive(Debug, clap::Subcommand)]
pub enum ClusterCommand {
    /// Shows the leader, applied log index, disk usage, targets and runners
    Status,
}

/// Runs `swell cluster`. Exit code 9 without a leader.
pub async fn run(context: &Context, command: ClusterCommand) -> Result<Exit> {
    let ClusterCommand::Status = command;
    let client = context.client()?;
    let mut value = client.get(&["v1", "cluster"], &[]).await?;
    let cluster: Cluster = views::read(&value)?;
    let exit = if cluster.leader.is_some() && cluster.stopped.is_none() { Exit::Done } else { Exit::Unreachable };
    // A server that is not ready answers with an error; the leader, read above, decides the exit code.
    let ready = client.get_once(&["readyz"]).await.ok();
    if let (Value::Object(fields), Some(ready)) = (&mut value, &ready) {
        fields.insert("ready".to_owned(), ready.get("ready").cloned().unwrap_or(json!(false)));
    }
    let ready: Ready = ready.as_ref().map(views::read).transpose()?.unwrap_or_default();
    context.output.result(&value, || {
        info([
            ("server", format!("{} at {}, version {}", cluster.server, client.addr(), cluster.version)),
            ("ready", if ready.ready { "yes" } else { "no" }.to_owned()),
            ("stopped", cluster.stopped.unwrap_or_default()),
            (
                "leader",
                or_dash(cluster.leader.map(|leader| format!("server {leader}, term {}, epoch {}", cluster.term, cluster.epoch))),
            ),
            (
                "applied",
                format!(
                    "{} of {}",
                    or_dash(cluster.applied.map(|n| n.to_string())),
                    or_dash(cluster.last_log.map(|n| n.to_string()))
                ),
            ),
            (
                "disk",
                format!(
                    "log {}, state {}, snapshots {}",
                    human::bytes(cluster.log_bytes),
                    human::bytes(cluster.state_bytes),
                    human::bytes(cluster.snapshot_bytes)
                ),
            ),
            ("events", format!("{}, newest {}", cluster.events, cluster.last_event)),
            ("targets", format!("{}, {} connected", cluster.targets, cluster.targets_connected)),
            ("runners", cluster.runners.to_string()),
        ])
    })?;
    Ok(exit)
}
