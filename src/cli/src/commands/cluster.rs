//! `swell cluster`: the servers that agree.

use serde_json::{Value, json};

use super::or_dash;
use crate::{
    context::Context,
    failure::{Exit, Result},
    human,
    output::info,
    views::{self, Cluster, Ready},
};

/// `swell cluster`
#[derive(Debug, clap::Subcommand)]
pub enum ClusterCommand {
    /// Show who leads, how far it is, and what is connected
    Status,
}

/// Does it. Exit code 9 where nobody leads.
pub async fn run(context: &Context, command: ClusterCommand) -> Result<Exit> {
    let ClusterCommand::Status = command;
    let client = context.client()?;
    let mut value = client.get(&["v1", "cluster"], &[]).await?;
    let cluster: Cluster = views::read(&value)?;
    let exit = if cluster.leader.is_some() && cluster.stopped.is_none() { Exit::Done } else { Exit::Unreachable };
    // Not ready is an answer, too; the leader above says the most important part of it.
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
            ("events", format!("{}, the newest {}", cluster.events, cluster.last_event)),
            ("targets", format!("{}, {} connected", cluster.targets, cluster.targets_connected)),
            ("runners", cluster.runners.to_string()),
        ])
    })?;
    Ok(exit)
}
