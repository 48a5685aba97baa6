//! The arguments of the roles that `main` plays. Knows nothing of how they are played.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use crate::model::units::{ByteSize, Millis};

/// Where a role keeps its files unless told: `/var/lib/swell` for root, else below the user's own state folder.
pub fn default_data_dir(role: &str) -> PathBuf {
    data_dir(role, nix::unistd::geteuid().is_root(), |name| std::env::var_os(name).map(PathBuf::from))
}

fn data_dir(role: &str, is_root: bool, var: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    // `swell dev` is a play thing even when root runs it, so it keeps away from the service's folder.
    if is_root && role != "dev" {
        return PathBuf::from("/var/lib/swell").join(role);
    }
    let absolute = |name| var(name).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    state.unwrap_or_else(|| PathBuf::from("/var/lib")).join("swell").join(role)
}

/// `swell dev`
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Where everything is kept
    #[arg(long, env = "SWELL_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where the API listens; peers use the next port
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Where the gateway takes requests
    #[arg(long, default_value = "127.0.0.1:7480", value_name = "ADDR")]
    pub gateway: SocketAddr,
    /// How many targets to play
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub agents: u32,
}

/// `swell server`
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// The server's configuration file
    #[arg(long = "server-config", env = "SWELL_SERVER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where state and artifacts are kept
    #[arg(long, env = "SWELL_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where the API listens
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Where the other servers reach this one
    #[arg(long, default_value = "127.0.0.1:7401", value_name = "ADDR")]
    pub peer_listen: SocketAddr,
    /// This server's number, from 1, its own in the cluster
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub id: u64,
    /// Another server of the cluster, as NUMBER=HOST:PORT of its peer port; once for each
    #[arg(long = "peer", value_name = "PEER")]
    pub peers: Vec<String>,
    /// Also run builds here
    #[arg(long)]
    pub runner: bool,
}

/// How a role reaches the servers.
#[derive(Debug, Clone, Args)]
pub struct Upstream {
    /// A server, as HOST:PORT; once for each, tried in turn
    #[arg(long = "server", env = "SWELL_SERVERS", value_delimiter = ',', default_value = "127.0.0.1:7400", value_name = "ADDR")]
    pub servers: Vec<String>,
    /// What this machine is called; its host name unless given
    #[arg(long, env = "SWELL_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// Where this role keeps its files
    #[arg(long, env = "SWELL_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// `swell runner`
#[derive(Debug, Clone, Args)]
pub struct RunnerArgs {
    /// How it reaches the servers.
    #[command(flatten)]
    pub upstream: Upstream,
    /// How many CPUs builds may use; all unless given
    #[arg(long, value_name = "N")]
    pub cpu: Option<f64>,
    /// How much memory builds may use, such as 8GiB; three quarters unless given
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
}

/// `swell agent`
#[derive(Debug, Clone, Args)]
pub struct AgentArgs {
    /// How it reaches the servers.
    #[command(flatten)]
    pub upstream: Upstream,
    /// The region this machine stands in
    #[arg(long, env = "SWELL_REGION", default_value = "default", value_name = "NAME")]
    pub region: String,
    /// The zone within the region
    #[arg(long, env = "SWELL_ZONE", default_value = "default", value_name = "NAME")]
    pub zone: String,
    /// A label, as NAME=VALUE, by which environments find this target; once for each
    #[arg(long = "label", value_name = "LABEL", value_parser = super::commands::key_value)]
    pub labels: Vec<(String, String)>,
    /// The address at which gateways reach what runs here
    #[arg(long, env = "SWELL_ADDRESS", default_value = "127.0.0.1", value_name = "IP")]
    pub address: std::net::IpAddr,
    /// How often it reports when nothing changes
    #[arg(long, default_value = "10s", value_name = "TIME")]
    pub report_every: Millis,
}

/// `swell gateway`
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    /// How it reaches the servers.
    #[command(flatten)]
    pub upstream: Upstream,
    /// The gateway's configuration file; flags that are given win over it
    #[arg(long = "gateway-config", env = "SWELL_GATEWAY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where it takes requests
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<SocketAddr>,
    /// Where probes and people ask about the gateway itself
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// Its zone: instances of the same zone are preferred
    #[arg(long, env = "SWELL_ZONE", value_name = "NAME")]
    pub zone: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_the_services_folder_and_dev_never_touches_it() {
        let var = |name: &str| (name == "HOME").then(|| PathBuf::from("/home/ada"));
        assert_eq!(data_dir("server", true, var), PathBuf::from("/var/lib/swell/server"));
        assert_eq!(data_dir("dev", true, var), PathBuf::from("/home/ada/.local/state/swell/dev"));
        assert_eq!(data_dir("server", false, var), PathBuf::from("/home/ada/.local/state/swell/server"));
    }
}
