//! `swell-loadgen`: simulated agents against a server, by hand. Prints its totals every few seconds until Ctrl-C.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use swell_loadgen::fleet::{Fleet, FleetOptions};
use tokio::time::interval;

/// Simulates a fleet of agents over real sessions
#[derive(Debug, Parser)]
struct Args {
    /// Server to connect to
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDR")]
    server: SocketAddr,
    /// Token of the role `agent`
    #[arg(long, env = "SWELL_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: String,
    /// Number of agents
    #[arg(long, default_value_t = 1000, value_name = "N")]
    agents: u32,
    /// Number of the first agent; several generators share a fleet by beginning at different numbers
    #[arg(long, default_value_t = 0, value_name = "N")]
    first: u32,
    /// Label of every agent, as NAME=VALUE; once for each
    #[arg(long = "label", value_name = "LABEL", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Address of the first target; each next one has the next address
    #[arg(long, default_value = "10.0.0.1", value_name = "IP")]
    address: Ipv4Addr,
    /// Seconds over which the first sessions are opened; one for each 1,000 agents unless given
    #[arg(long, value_name = "SECONDS")]
    ramp: Option<u64>,
    /// Decides all that is random
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Seconds between two lines of totals
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE, such as role=web")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let args = Args::parse();
    let mut options = FleetOptions::new(args.server, &args.token, args.agents);
    options.first = args.first;
    options.labels = args.labels.into_iter().collect();
    options.first_address = args.address;
    options.seed = args.seed;
    if let Some(seconds) = args.ramp {
        options.ramp = Duration::from_secs(seconds);
    }
    let fleet = Fleet::start(options)?;
    let mut every = interval(Duration::from_secs(args.every));
    let stop = tokio::signal::ctrl_c();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            stopped = &mut stop => {
                stopped.context("failed to wait for Ctrl-C")?;
                fleet.stop().await;
                return Ok(());
            }
            _ = every.tick() => println!("{:?}", fleet.counters().totals()),
        }
    }
}
