//! Development commands: `cargo xtask setup | test | demo | bench`. The first thing that a fresh clone compiles, so it
//! stays tiny (the standard library and anyhow) and must not depend on the product's crate.

mod bench;
mod demo;
mod setup;
mod steps;
mod test;

use std::process::ExitCode;

const USAGE: &str = "\
Development commands of Groundswell

  cargo xtask setup                    install what is missing to build and test
  cargo xtask test                     set-up, then everything that CI runs
  cargo xtask demo [--port N] [--keep] build, and show one push from commit to fleet, and a bad one turned back
  cargo xtask bench [NAME]             run a benchmark beside its peer; without a name: list them

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
        ["setup"] => setup::run(setup::Purpose::Test),
        ["test"] => test::run(),
        ["demo", options @ ..] => demo::run(&demo::Options::parse(options)?),
        ["bench"] => bench::list(),
        ["bench", name] => bench::run(name),
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
