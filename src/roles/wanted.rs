//! From what was typed to what each role is told. A value that cannot be meant is an error with the way out.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use groundswell::{
    agent::AgentOptions,
    cli::{
        Globals,
        roles::{AgentArgs, DevArgs, GatewayArgs, ServerArgs, Upstream, default_data_dir},
    },
    gateway::{GatewayConfig, Listener, SessionConfig},
    model::{build::Resources, fleet::TargetFacts, ids::TargetName, principal::Role},
};

use super::{dev, server};

/// What `swell server` is told.
pub fn server(args: ServerArgs) -> Result<server::Options> {
    let runner = if args.runner {
        let mut resources = server::room_here();
        if let Some(cpu) = args.cpu {
            if !(0.1..=4096.0).contains(&cpu) {
                bail!("--cpu is {cpu}: give a number of CPUs from 0.1 on");
            }
            resources.cpu_millis = (cpu * 1000.0) as u32;
        }
        let resources = Resources { memory: args.memory.unwrap_or(resources.memory), ..resources };
        let name = host_name()?.parse().context("this machine's host name cannot name a runner")?;
        Some(server::RunnerOptions { name, resources, allow_unisolated: args.allow_unisolated })
    } else {
        None
    };
    Ok(server::Options { data: args.data.unwrap_or_else(|| default_data_dir("server")), listen: args.listen, id: 1, runner })
}

/// What `swell dev` is told.
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

/// What `swell agent` is told.
pub fn agent(args: AgentArgs, globals: &Globals) -> Result<AgentOptions> {
    let name: TargetName = name(&args.upstream)?.parse()?;
    let facts = TargetFacts {
        name,
        region: args.region,
        zone: args.zone,
        labels: args.labels.into_iter().collect(),
        address: args.address,
        ports: args.ports,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let data = args.upstream.data.unwrap_or_else(|| default_data_dir("agent"));
    let servers = args.upstream.servers.iter().map(|server| format!("http://{server}")).collect();
    let mut options = AgentOptions::new(facts, data, servers, token(globals, Role::Agent)?);
    options.reserve = args.reserve;
    options.default_user = args.default_user;
    options.allow_unisolated = args.allow_unisolated;
    Ok(options)
}

/// What `swell gateway` is told: its file, and what was typed over it.
pub fn gateway(args: GatewayArgs, globals: &Globals) -> Result<GatewayConfig> {
    let mut config = match &args.config {
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            toml::from_str(&text).with_context(|| format!("{} is not a gateway's configuration", file.display()))?
        }
        None => GatewayConfig::default(),
    };
    let data = args.upstream.data.clone().unwrap_or_else(|| default_data_dir("gateway"));
    super::private_folder(&data)?;
    config.name = name(&args.upstream)?;
    config.table_file.get_or_insert_with(|| data.join("routes"));
    if !args.listen.is_empty() {
        let listener = |address: &std::net::SocketAddr| Listener { address: *address, service: args.service.clone() };
        config.listeners = args.listen.iter().map(listener).collect();
    }
    config.admin = args.admin.or(config.admin);
    config.zone = args.zone.unwrap_or(config.zone);
    let token = token(globals, Role::Gateway)?;
    match &mut config.session {
        Some(session) => session.token = token,
        None => config.session = Some(SessionConfig { servers: args.upstream.servers, token }),
    }
    Ok(config)
}

fn name(upstream: &Upstream) -> Result<String> {
    upstream.name.clone().map_or_else(host_name, Ok)
}

fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().context("this machine has no host name: give one with --name")?;
    Ok(name.to_string_lossy().to_lowercase())
}

/// What proves that this machine may play `role`.
fn token(globals: &Globals, role: Role) -> Result<String> {
    if let Some(file) = &globals.token_file {
        return read_token(file);
    }
    if let Some(token) = std::env::var_os("SWELL_TOKEN") {
        return token.into_string().ok().context("SWELL_TOKEN is not text");
    }
    bail!(
        "no token: give the {role}'s with --token-file or SWELL_TOKEN; the server keeps it in `tokens/{role}` of its data folder"
    )
}

fn read_token(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read the token in {}", file.display()))?;
    Ok(text.trim().to_owned())
}
