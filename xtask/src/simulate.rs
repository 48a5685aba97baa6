//! `cargo xtask simulate`: many seeded histories of the rules, and how fast they went. Knows nothing of what a history holds.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

use crate::{Usage, steps};

/// Optimized, with assertions and overflow checks as in tests.
const TESTS: &str = "test --locked --package swell-model --features testing --profile simulation --lib";

/// Tests are chosen by this part of their path.
const FILTER: &str = "simulation";

/// What the command line asked for.
#[derive(Debug, PartialEq)]
pub struct Options {
    /// The seed of the first history; drawn from the clock unless given.
    pub seed: Option<u64>,
    /// How many histories are tried.
    pub histories: u64,
}

impl Options {
    /// Reads `[--seed N] [--histories M]`.
    pub fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options = Self { seed: None, histories: 10_000 };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut number = || {
                let number = arguments.next().and_then(|text| text.parse::<u64>().ok());
                number.with_context(|| Usage(format!("`{argument}` needs a number")))
            };
            match *argument {
                "--seed" => options.seed = Some(number()?),
                "--histories" => options.histories = number()?,
                other => {
                    return Err(Usage(format!("simulate does not know `{other}`: it takes [--seed N] [--histories M]")).into());
                }
            }
        }
        if options.histories == 0 {
            return Err(Usage("`--histories` needs at least 1".to_owned()).into());
        }
        Ok(options)
    }
}

/// Runs the simulation and prints its throughput. The seed is printed first: with it a failure is repeated.
pub fn run(options: &Options) -> Result<()> {
    // Built first, so that compiling is not counted; and a filter that chooses nothing would pass.
    steps::run(&mut steps::cargo(&format!("{TESTS} --no-run"))?)?;
    let listed = steps::cargo(&format!("{TESTS} --quiet -- {FILTER} --list"))?.output().context("failed to list the tests")?;
    let tests = String::from_utf8_lossy(&listed.stdout).lines().filter(|line| line.ends_with(": test")).count();
    ensure!(listed.status.success() && tests > 0, "swell-model has no test with `{FILTER}` in its path: nothing was tried");

    let seed = options.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_secs() ^ u64::from(now.subsec_nanos())
    });
    println!("seed {seed}, {} histories; to repeat: cargo xtask simulate --seed {seed} --histories {0}", options.histories);
    let started = Instant::now();
    let mut command = steps::cargo_without_ccache(&format!("{TESTS} -- {FILTER} --nocapture"))?;
    steps::run(command.env("SEED", seed.to_string()).env("HISTORIES", options.histories.to_string()))?;
    let secs = started.elapsed().as_secs_f64();
    println!("{} histories in {secs:.1} s: {:.0} a second", options.histories, options.histories as f64 / secs);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Options;

    #[test]
    fn simulate_options_read_seed_and_histories() {
        let options = Options::parse(&["--seed", "7", "--histories", "300"]).unwrap();
        assert_eq!(options, Options { seed: Some(7), histories: 300 });
        assert_eq!(Options::parse(&[]).unwrap().seed, None);
    }

    #[test]
    fn simulate_options_refuse_what_is_no_number() {
        for wrong in [&["--seed"][..], &["--seed", "x"], &["--histories", "0"], &["--fast"]] {
            let error = Options::parse(wrong).unwrap_err();
            assert!(error.is::<crate::Usage>() || error.downcast_ref::<crate::Usage>().is_some(), "{wrong:?}: {error:#}");
        }
    }
}
