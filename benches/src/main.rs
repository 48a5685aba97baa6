//! `swell-bench NAME`: measures the product beside its peer and prints JSON lines for `cargo xtask bench`, which says what they are.
//! Without a name it lists what there is. With `--quick` a benchmark takes a few seconds: it shows that it works, and its figures mean
//! nothing.
//!
//! It measures processes from outside: the `swell` beside it in the same folder (or `--swell PATH`) and the peers that are installed.
//! What it starts it ends, and what it writes it removes.

mod apply;
mod container;
mod etcd;
mod fleet;
mod gateway;
mod process;
mod report;
mod sample;
mod server;
mod start;
mod writes;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::report::Report;

/// What each benchmark is called and measures.
const BENCHES: [(&str, &str); 6] = [
    ("apply", "each command at 1, 10 and 50 times the fleet: records read, bytes written, time"),
    ("container", "a container that runs nothing, from creating to deleting it, beside runc"),
    ("fleet", "a server with 17,000 agents: memory, processor time, rollouts, rollback, restart"),
    ("gateway", "requests a second through the gateway, beside HAProxy and nginx"),
    ("start", "from a push to the first command of its build, beside git and runc"),
    ("writes", "durable commands a second, beside etcd"),
];

/// How a benchmark is run.
#[derive(Debug, Clone)]
struct Setup {
    /// The program that is measured.
    swell: PathBuf,
    /// Whether it only shows that it works.
    quick: bool,
}

impl Setup {
    /// How often each side is measured.
    fn rounds(&self, rounds: usize) -> usize {
        if self.quick { 1 } else { rounds }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("swell-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut name = None;
    let mut quick = false;
    let mut swell = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--swell" => swell = Some(PathBuf::from(arguments.next().context("--swell needs a path")?)),
            _ if argument.starts_with('-') || name.is_some() => bail!("usage: swell-bench [NAME] [--quick] [--swell PATH]"),
            _ => name = Some(argument),
        }
    }
    let Some(name) = name else {
        for (name, what) in BENCHES {
            println!("{name:<10} {what}");
        }
        return Ok(());
    };
    let beside = || Ok::<_, std::io::Error>(std::env::current_exe()?.with_file_name("swell"));
    let swell = swell.map_or_else(beside, Ok).context("failed to find the program `swell`")?;
    let setup = Setup { swell: swell.canonicalize().with_context(|| format!("failed to find {}", swell.display()))?, quick };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("failed to start the runtime")?;
    runtime.block_on(async {
        tokio::select! {
            ended = bench(&name, &setup) => ended,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    })
}

async fn bench(name: &str, setup: &Setup) -> Result<()> {
    match name {
        "apply" => apply::run(setup, Report::new("apply")).await,
        "container" => container::run(setup, Report::new("container")).await,
        "fleet" => fleet::run(setup, Report::new("fleet")).await,
        "gateway" => gateway::run(setup, Report::new("gateway")).await,
        "start" => start::run(setup, Report::new("start")).await,
        "writes" => writes::run(setup, Report::new("writes")).await,
        _ => bail!("there is no benchmark `{name}`; `swell-bench` lists them"),
    }
}
