//! The arguments of the roles that `main` runs. Knows nothing of how they run.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use super::flag_values::{cpus, host_port, key_value, port_range};
use swell_model::{fleet::PortRange, routing::table::ServiceKey, units::ByteSize};

/// The default data folder of a role: below `/var/lib/swell` for root, else below the user's state folder.
pub fn default_data_dir(role: &str) -> PathBuf {
    data_dir(role, nix::unistd::geteuid().is_root(), |name| std::env::var_os(name).map(PathBuf::from))
}

fn data_dir(role: &str, is_root: bool, var: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    // `swell dev` never uses the folder of an installed service, also when root runs it.
    if is_root && role != "dev" {
        return PathBuf::from("/var/lib/swell").join(role);
    }
    let absolute = |name| var(name).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    state.unwrap_or_else(|| PathBuf::from("/var/lib")).join("swell").join(role)
}

/// Options of `swell dev`
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Folder for all data
    #[arg(long, env = "SWELL_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address that the API listens on
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Address that the gateway serves requests on
    #[arg(long, default_value = "127.0.0.1:7480", value_name = "ADDR")]
    pub gateway: SocketAddr,
    /// Address of the gateway's own /readyz and /metrics
    #[arg(long, default_value = "127.0.0.1:7481", value_name = "ADDR")]
    pub gateway_admin: SocketAddr,
    /// Number of targets to run, spread over two zones
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub agents: u16,
    /// First port for services; each target uses the next 200
    #[arg(long, default_value_t = 20_000, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=45_000))]
    pub first_port: u16,
}

/// Options of `swell server`
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Folder for state and artifacts
    #[arg(long, env = "SWELL_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address that the API listens on
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Run builds on this machine
    #[arg(long)]
    pub runner: bool,
    // `requires = "runner"` would not see values of the configuration file, which are defaults to clap: `ServerArgs::check` does.
    /// CPUs that builds may use [default: all]
    #[arg(long, value_name = "N", value_parser = cpus)]
    pub cpu: Option<f64>,
    /// Memory that builds may use, such as 8GiB [default: three quarters]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Run builds as plain processes where this machine forbids containers; only for `swell dev`
    #[arg(long, hide = true)]
    pub allow_unisolated: bool,
}

impl ServerArgs {
    /// Checks settings that depend on each other, wherever each comes from. The error says what to change.
    pub fn check(&self) -> Result<(), String> {
        let given = [("cpu", self.cpu.is_some()), ("memory", self.memory.is_some()), ("allow-unisolated", self.allow_unisolated)];
        match given.iter().find(|(_, is_given)| *is_given && !self.runner) {
            Some((name, _)) => Err(format!("{name} needs --runner: add it (`runner = true` in the file), or remove {name}")),
            None => Ok(()),
        }
    }
}

/// The connection of an agent or gateway to the servers.
#[derive(Debug, Clone, Args)]
pub struct Upstream {
    /// Address of a server; repeat it for each server, which are tried in turn
    #[arg(
        long = "server",
        env = "SWELL_SERVERS",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400",
        value_name = "HOST:PORT",
        value_parser = host_port
    )]
    pub servers: Vec<String>,
    /// Name of this machine in the cluster [default: its host name]
    #[arg(long, env = "SWELL_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// Folder for the role's data
    #[arg(long, env = "SWELL_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Options of `swell agent`
#[derive(Debug, Clone, Args)]
pub struct AgentArgs {
    #[command(flatten)]
    pub upstream: Upstream,
    /// Region of this machine
    #[arg(long, env = "SWELL_REGION", default_value = "default", value_name = "NAME")]
    pub region: String,
    /// Zone of this machine within its region
    #[arg(long, env = "SWELL_ZONE", default_value = "default", value_name = "NAME")]
    pub zone: String,
    /// Label that environments select this target by; repeat it for each label
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = key_value)]
    pub labels: Vec<(String, String)>,
    /// Address at which gateways reach services on this machine
    #[arg(long, env = "SWELL_ADDRESS", default_value = "127.0.0.1", value_name = "IP")]
    pub address: std::net::IpAddr,
    /// Ports for services whose port is `auto`
    #[arg(long, default_value = "20000-29999", value_name = "FIRST-LAST", value_parser = port_range)]
    pub ports: PortRange,
    /// Disk space that releases leave free, such as 1GiB
    #[arg(long, default_value = "0", value_name = "SIZE")]
    pub reserve: ByteSize,
    /// User for services that name none [default: a user for each service]
    #[arg(long, value_name = "USER")]
    pub default_user: Option<String>,
    /// Run services without control groups where this machine forbids them; only for `swell dev`
    #[arg(long, hide = true)]
    pub allow_unisolated: bool,
}

/// Options of `swell gateway`
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    #[command(flatten)]
    pub upstream: Upstream,
    /// Address to serve requests on, routed by host, such as 0.0.0.0:80; repeat it for each address
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<SocketAddr>,
    /// Service that receives every request, whatever its host
    #[arg(long, value_name = "PIPELINE/ENVIRONMENT/SERVICE")]
    pub service: Option<ServiceKey>,
    /// Address of the gateway's own /readyz and /metrics, such as 127.0.0.1:7481
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// Zone of the gateway; instances in the same zone are preferred
    #[arg(long, env = "SWELL_ZONE", value_name = "NAME")]
    pub zone: Option<String>,
    /// Settings of the configuration file that have no flag.
    #[arg(skip)]
    pub tuning: Tuning,
}

/// The keys of a gateway's configuration file that have no flag. The gateway parses them.
pub const GATEWAY_TABLES: [&str; 4] = ["listener", "trust_forwarded", "table_file", "limits"];

/// The settings of a gateway's configuration file that have no flag, unparsed.
#[derive(Debug, Clone, Default)]
pub struct Tuning {
    /// The file, for messages.
    pub file: PathBuf,
    /// Values of [`GATEWAY_TABLES`].
    pub keys: toml::Table,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_folder_is_the_services_for_root_but_never_for_dev() {
        let var = |name: &str| (name == "HOME").then(|| PathBuf::from("/home/ada"));
        assert_eq!(data_dir("server", true, var), PathBuf::from("/var/lib/swell/server"));
        assert_eq!(data_dir("dev", true, var), PathBuf::from("/home/ada/.local/state/swell/dev"));
        assert_eq!(data_dir("server", false, var), PathBuf::from("/home/ada/.local/state/swell/server"));
    }
}
