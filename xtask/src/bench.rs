//! `cargo xtask bench NAME`: one benchmark with its peer in the same run. Knows the list, not how each one measures.

use anyhow::Result;

use crate::{Usage, steps};

/// A file of `benches/` that measures us and a peer, several times, and prints medians and their ratio.
struct Benchmark {
    /// The file's name without its ending.
    name: &'static str,
    /// What is measured, and against whom.
    what: &'static str,
}

/// A benchmark is listed here once it is in `benches/`.
const BENCHMARKS: &[Benchmark] = &[];

/// Prints what can be run.
pub fn list() -> Result<()> {
    if BENCHMARKS.is_empty() {
        println!("no benchmark is written yet");
    }
    for benchmark in BENCHMARKS {
        println!("{:<16} {}", benchmark.name, benchmark.what);
    }
    Ok(())
}

/// Runs one, optimised.
pub fn run(name: &str) -> Result<()> {
    let Some(benchmark) = BENCHMARKS.iter().find(|benchmark| benchmark.name == name) else {
        let names: Vec<_> = BENCHMARKS.iter().map(|benchmark| benchmark.name).collect();
        let known = if names.is_empty() { "none is written yet".to_owned() } else { format!("there are: {}", names.join(", ")) };
        return Err(Usage(format!("no benchmark is called `{name}`: {known}")).into());
    };
    steps::run(&mut steps::cargo(&format!("bench --locked --bench {}", benchmark.name))?)
}
