//! The arguments of the roles that `main` plays. Knows nothing of how they are played.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use swell_model::{fleet::PortRange, routing::table::ServiceKey, units::ByteSize};

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
    /// Where the API listens
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Where the gateway takes requests
    #[arg(long, default_value = "127.0.0.1:7480", value_name = "ADDR")]
    pub gateway: SocketAddr,
    /// Where the gateway is asked about itself
    #[arg(long, default_value = "127.0.0.1:7481", value_name = "ADDR")]
    pub gateway_admin: SocketAddr,
    /// How many targets to play, in two zones
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub agents: u16,
    /// The first of the ports that the targets' services get; each target has the next 200
    #[arg(long, default_value_t = 20_000, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=45_000))]
    pub first_port: u16,
}

/// `swell server`
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Where state and artifacts are kept
    #[arg(long, env = "SWELL_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where the API listens
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Also run builds here
    #[arg(long)]
    pub runner: bool,
    // Not `requires = "runner"` below: clap overlooks what a file says, which is a default to it. `ServerArgs::check` sees all.
    /// How many CPUs builds may use; all unless given
    #[arg(long, value_name = "N", value_parser = cpus)]
    pub cpu: Option<f64>,
    /// How much memory builds may use, such as 8GiB; three quarters unless given
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Run builds as plain processes where this machine forbids containers: for `swell dev` alone
    #[arg(long, hide = true)]
    pub allow_unisolated: bool,
}

impl ServerArgs {
    /// Whether the settings go together, wherever each comes from; else what is wrong and the way out.
    pub fn check(&self) -> Result<(), String> {
        let given = [("cpu", self.cpu.is_some()), ("memory", self.memory.is_some()), ("allow-unisolated", self.allow_unisolated)];
        match given.iter().find(|(_, is_given)| *is_given && !self.runner) {
            Some((name, _)) => Err(format!(
                "{name} is for a server that runs builds: give --runner too (`runner = true` in its file), or take {name} out"
            )),
            None => Ok(()),
        }
    }
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
    /// The ports that services with `auto` ports get, as FIRST-LAST
    #[arg(long, default_value = "20000-29999", value_name = "PORTS", value_parser = port_range)]
    pub ports: PortRange,
    /// Bytes that releases leave free on the disk, such as 1GiB
    #[arg(long, default_value = "0", value_name = "SIZE")]
    pub reserve: ByteSize,
    /// Services that name no user run as this one; each gets a user of its own unless given
    #[arg(long, value_name = "USER")]
    pub default_user: Option<String>,
    /// Run services without control groups where this machine forbids them: for `swell dev` alone
    #[arg(long, hide = true)]
    pub allow_unisolated: bool,
}

/// `swell gateway`
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    /// How it reaches the servers.
    #[command(flatten)]
    pub upstream: Upstream,
    /// Where it takes requests, routed by host, such as 0.0.0.0:80; once for each
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<SocketAddr>,
    /// The service that every request is for, whatever its host, as PIPELINE/ENVIRONMENT/SERVICE
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<ServiceKey>,
    /// Where probes and people ask about the gateway itself, such as 127.0.0.1:7481
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// Its zone: instances of the same zone are preferred
    #[arg(long, env = "SWELL_ZONE", value_name = "NAME")]
    pub zone: Option<String>,
    /// What its file says beyond flags.
    #[arg(skip)]
    pub tuning: Tuning,
}

/// The keys of a gateway's file that are no flags. What they hold is known to the gateway alone.
pub const GATEWAY_TABLES: [&str; 4] = ["listener", "trust_forwarded", "table_file", "limits"];

/// What a gateway's file says beyond flags, unread.
#[derive(Debug, Clone, Default)]
pub struct Tuning {
    /// The file, for messages.
    pub file: PathBuf,
    /// Some of [`GATEWAY_TABLES`].
    pub keys: toml::Table,
}

fn cpus(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.1..=4096.0).contains(number));
    number.ok_or_else(|| "write a number of CPUs from 0.1 to 4096".to_owned())
}

fn port_range(text: &str) -> Result<PortRange, String> {
    let parsed =
        text.split_once('-').and_then(|(first, last)| Some(PortRange { first: first.parse().ok()?, last: last.parse().ok()? }));
    let range = parsed.filter(|range| range.first >= 1024 && range.pairs() > 0);
    range.ok_or_else(|| "write it as FIRST-LAST, such as 20000-29999, from 1024 on and with two ports at least".to_owned())
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
