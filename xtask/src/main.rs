//! Development commands: `cargo xtask setup | test | demo | bench | simulate | mutants`. The first thing that a fresh clone compiles, so it
//! stays tiny (the standard library, anyhow and serde_json) and must not depend on the product's crate.

mod bench;
mod demo;
mod mutants;
mod product;
mod setup;
mod simulate;
mod steps;
mod table;
mod test;
mod tools;

use std::process::ExitCode;

const USAGE: &str = "\
Development commands of Groundswell

  cargo xtask setup                    install what is missing to build and test
  cargo xtask test                     set-up, then everything that CI runs
  cargo xtask demo [--port N] [--keep] build, and show one push from commit to fleet, and a bad one turned back
  cargo xtask bench [NAME]             run a benchmark beside its peer and write docs/BENCHMARKS.md; without a name: list them
  cargo xtask simulate [--seed N] [--histories M]
                                       try the rules with many seeded histories, and say how fast that went
  cargo xtask mutants [ARGUMENT]...    plant faults in the rules and list those that no test notices (cargo-mutants)

CARGO_TARGET_DIR says where to build; unset: ${XDG_CACHE_HOME:-~/.cache}/groundswell/target";

/// An end that is the user's to change: what was typed, or what the machine lacks. Exit code 2.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn run(arguments: &[&str]) -> anyhow::Result<()> {
    match arguments {
        ["setup"] => {
            setup::run(setup::Purpose::Test)?;
            tools::install(tools::OF_TESTS)
        }
        ["test"] => test::run(),
        ["demo", options @ ..] => demo::run(&demo::Options::parse(options)?),
        ["bench"] => bench::list(),
        ["bench", name] => bench::run(name),
        ["simulate", options @ ..] => simulate::run(&simulate::Options::parse(options)?),
        ["mutants", arguments @ ..] => mutants::run(arguments),
        [] | ["help" | "-h" | "--help"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => Err(Usage(format!("`{}` is no command here\n\n{USAGE}", arguments.join(" "))).into()),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}
