//! The program `swell`: temporary wiring.

mod roles;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    if let Some(code) = shim_command() {
        return code;
    }
    let args: Vec<String> = std::env::args().collect();
    let flag = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1).cloned());
    let all = |name: &str| -> Vec<String> { args.windows(2).filter(|w| w[0] == name).map(|w| w[1].clone()).collect() };
    let addr = |name: &str, d: &str| -> SocketAddr { flag(name).unwrap_or(d.into()).parse().expect("addr") };
    let data = PathBuf::from(flag("--data").unwrap_or_default());
    let token = std::env::var("SWELL_TOKEN").unwrap_or_default();
    let r = match args.get(1).map(String::as_str) {
        Some("server") => roles::play(false, |stop| roles::server::run(roles::server::Options {
            data, listen: addr("--listen", "127.0.0.1:7400"), id: 1,
            runner: args.iter().any(|a| a == "--runner").then(|| roles::server::RunnerOptions { name: "runner".parse().expect("n"), resources: roles::server::room_here(), allow_unisolated: true }),
        }, stop)),
        Some("gateway") => roles::play(false, |stop| roles::gateway::run(groundswell::gateway::GatewayConfig {
            listeners: vec![groundswell::gateway::Listener { address: addr("--listen", "127.0.0.1:7480"), service: None }],
            admin: Some(addr("--admin", "127.0.0.1:7481")),
            session: Some(groundswell::gateway::SessionConfig { servers: all("--server"), token }),
            table_file: Some(data.join("routes")),
            ..Default::default()
        }, stop)),
        Some("agent") => roles::play(false, |stop| {
            let ports = flag("--ports").expect("ports");
            let (a, b) = ports.split_once('-').expect("-");
            let facts = groundswell::model::fleet::TargetFacts {
                name: flag("--name").expect("n").parse().expect("n"), region: flag("--region").expect("r"), zone: flag("--zone").expect("z"),
                labels: Default::default(), address: [127, 0, 0, 1].into(),
                ports: groundswell::model::fleet::PortRange { first: a.parse().expect("a"), last: b.parse().expect("b") }, agent_version: "0".into() };
            let mut o = groundswell::agent::AgentOptions::new(facts, data, all("--server").iter().map(|s| format!("http://{s}")).collect(), token);
            o.allow_unisolated = true;
            roles::agent::run(o, stop)
        }),
        Some("dev") => roles::play(false, |stop| roles::dev::run(roles::dev::Options { data, listen: addr("--listen", "127.0.0.1:7400"), gateway: addr("--gateway", "127.0.0.1:7480"),
            gateway_admin: addr("--gateway-admin", "127.0.0.1:7481"), agents: flag("--agents").unwrap_or("3".into()).parse().expect("n"), first_port: None }, stop)),
        _ => Ok(()),
    };
    match r { Ok(()) => ExitCode::SUCCESS, Err(e) => { eprintln!("error: {e:#}"); ExitCode::from(2) } }
}

/// `swell shim DIR`, before anything else: it must never become multi-threaded.
fn shim_command() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != "shim" {
        return None;
    }
    let dir = args.next()?;
    Some(groundswell::runner::shim::main(dir.as_ref()))
}
