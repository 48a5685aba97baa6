//! Converts command line arguments to the options of each role. A wrong value is an error with a hint.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use swell_agent::AgentOptions;
use swell_cli::{
    Globals,
    roles::{AgentArgs, DevArgs, GatewayArgs, ServerArgs, Tuning, Upstream, default_data_dir},
};
use swell_gateway::{GatewayConfig, Listener, SessionConfig};
use swell_model::{build::Resources, fleet::TargetInfo, ids::TargetName, principal::Role};

use super::{dev, server};

/// The options of `swell server`.
pub fn server(args: ServerArgs) -> Result<server::Options> {
    args.check().map_err(anyhow::Error::msg)?;
    let runner = if args.runner {
        let mut resources = server::default_capacity();
        if let Some(cpu) = args.cpu {
            resources.cpu_millis = (cpu * 1000.0) as u32;
        }
        let resources = Resources { memory: args.memory.unwrap_or(resources.memory), ..resources };
        let name = host_name()?.parse().context("this machine's host name is not a valid name for a runner")?;
        Some(server::RunnerOptions { name, resources, allow_unisolated: args.allow_unisolated })
    } else {
        None
    };
    Ok(server::Options { data: args.data.unwrap_or_else(|| default_data_dir("server")), listen: args.listen, id: 1, runner })
}

/// The options of `swell dev`.
pub fn dev(args: DevArgs) -> dev::Options {
    dev::Options {
        data: args.data.unwrap_or_else(|| default_data_dir("dev")),
        listen: args.listen,
        gateway: args.gateway,
        gateway_admin: args.gateway_admin,
        agents: args.agents,
        first_port: args.first_port,
    }
}

/// The options of `swell agent`.
pub fn agent(args: AgentArgs, globals: &Globals) -> Result<AgentOptions> {
    let name: TargetName = name(&args.upstream)?.parse()?;
    let info = TargetInfo {
        name,
        region: args.region,
        zone: args.zone,
        labels: args.labels.into_iter().collect(),
        address: args.address,
        ports: args.ports,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let data = args.upstream.data.unwrap_or_else(|| default_data_dir("agent"));
    let servers = args.upstream.servers.clone();
    let mut options = AgentOptions::new(info, data, servers, token(globals, Role::Agent)?);
    options.reserve = args.reserve;
    options.default_user = args.default_user;
    options.allow_unisolated = args.allow_unisolated;
    Ok(options)
}

/// The configuration of a gateway: its file, overridden by its flags.
pub fn gateway(args: GatewayArgs, globals: &Globals) -> Result<GatewayConfig> {
    let mut config = tuned(args.tuning)?;
    let data = args.upstream.data.clone().unwrap_or_else(|| default_data_dir("gateway"));
    super::private_folder(&data)?;
    config.name = name(&args.upstream)?;
    config.table_file.get_or_insert_with(|| data.join("routes"));
    if !args.listen.is_empty() {
        config.listeners = args.listen.into_iter().map(|address| Listener { address, service: None }).collect();
    }
    if let Some(service) = args.service {
        config.listeners.iter_mut().for_each(|listener| listener.service = Some(service.clone()));
    }
    config.admin = args.admin.or(config.admin);
    config.zone = args.zone.unwrap_or(config.zone);
    config.session = Some(SessionConfig { servers: args.upstream.servers, token: token(globals, Role::Gateway)? });
    Ok(config)
}

/// A gateway's configuration from the settings that have no flag.
fn tuned(tuning: Tuning) -> Result<GatewayConfig> {
    let read = tuning.keys.try_into::<GatewayConfig>();
    read.map_err(|error| anyhow::anyhow!("{}: {}", tuning.file.display(), error.to_string().trim_end().replace('\n', " ")))
}

fn name(upstream: &Upstream) -> Result<String> {
    upstream.name.clone().map_or_else(host_name, Ok)
}

fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().context("failed to read this machine's host name; name it with --name")?;
    Ok(name.to_string_lossy().to_lowercase())
}

/// The token of `role`: from `--token-file`, else SWELL_TOKEN.
fn token(globals: &Globals, role: Role) -> Result<String> {
    if let Some(file) = &globals.token_file {
        return read_token(file);
    }
    if let Some(token) = std::env::var_os("SWELL_TOKEN") {
        return token.into_string().ok().context("SWELL_TOKEN is not UTF-8");
    }
    bail!(
        "no token: name the file of the {role}'s token with --token-file (`token_file` in the configuration file), or set \
         SWELL_TOKEN; the server stores the token in `tokens/{role}` in its data folder"
    )
}

fn read_token(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("failed to read the token in {}", file.display()))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use swell_cli::roles::GATEWAY_TABLES;

    use super::*;

    fn tuning(text: &str) -> Tuning {
        Tuning { file: "/etc/swell/gateway.toml".into(), keys: text.parse().unwrap() }
    }

    #[test]
    fn every_gateway_setting_is_accepted_in_its_file() {
        let known = serde_json::to_value(GatewayConfig::default()).unwrap();
        let by_flag = ["name", "zone", "admin", "session"];
        let missing = known.as_object().unwrap().keys().find(|key| {
            let key = key.as_str();
            !by_flag.contains(&key) && !GATEWAY_TABLES.contains(&key)
        });
        assert_eq!(missing, None, "add it to GATEWAY_TABLES and to config/gateway.toml");
    }

    #[test]
    fn gateway_example_shows_every_limit_with_its_default() {
        let path = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("config/gateway.toml");
        let text = std::fs::read_to_string(path).unwrap();
        let limits = text.split_once("#[limits]\n").unwrap().1;
        let settings =
            limits.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| line.starts_with(char::is_lowercase));
        let table = format!("trust_forwarded = false\n[limits]\n{}", settings.collect::<Vec<_>>().join("\n"));
        let shown: toml::Table = table.parse().unwrap();
        let (read, default) = (tuned(tuning(&table)).unwrap(), GatewayConfig::default());
        let default = serde_json::to_value(default).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), default);
        let bounds: Vec<&String> = default["limits"].as_object().map(|bounds| bounds.keys().collect()).unwrap();
        let missing: Vec<_> = bounds.into_iter().filter(|bound| shown["limits"].get(bound.as_str()).is_none()).collect();
        assert!(missing.is_empty(), "config/gateway.toml must show {missing:?}");
    }

    #[test]
    fn wrong_gateway_setting_is_refused_with_file_and_key() {
        let said = |text: &str| tuned(tuning(text)).unwrap_err().to_string();
        let wrong = said("[limits]\nidle_timeout = 3");
        assert!(wrong.starts_with("/etc/swell/gateway.toml: ") && wrong.contains("`limits.idle_timeout`"), "{wrong}");
        assert!(said("[limits]\nconections_max = 3").contains("unknown field `conections_max`, expected one of"));
    }
}
