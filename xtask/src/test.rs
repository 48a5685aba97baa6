//! Everything that CI runs, cheapest first. Knows which tools are asked, not what they check.

use std::{env, fs};

use anyhow::{Context as _, Result};

use crate::{
    product::{self, RocksDbBuilds, SELECTION},
    setup,
    steps::{self, Steps},
    tools,
};

/// Runs all steps and stops at the first that fails.
pub fn run() -> Result<()> {
    println!("target folder: {}", steps::target_dir()?.display());
    let mut steps = Steps::default();
    let rocksdb = RocksDbBuilds::watch();
    steps.step("set-up", || {
        setup::run(setup::Purpose::Test)?;
        tools::install(tools::OF_TESTS)
    })?;
    steps.step("format", || cargo("fmt --all --check"))?;
    steps.step("dependencies", deny)?;
    steps.step("clippy", || cargo(&format!("clippy {SELECTION} --all-targets -- -D warnings")))?;
    steps.step("build", || product::build().map(|_| ()))?;
    // Compiled apart from running: ccache serves the compilers of this step, and not those that the tests start.
    steps.step("test programs", || {
        cargo(&format!("nextest run {SELECTION} --no-run"))?;
        rocksdb.expect_at_most_one()
    })?;
    steps.step("examples in documentation", || run_tests(&format!("test {SELECTION} --doc")))?;
    // Last, so that the runner's closing lines stand near the end of the output.
    steps.step("tests", || run_tests(&format!("nextest run {SELECTION} --no-fail-fast")))?;
    println!("\nall passed: {}", steps.summary());
    Ok(())
}

fn run_tests(line: &str) -> Result<()> {
    steps::run(&mut steps::cargo_without_ccache(line)?)
}

fn cargo(line: &str) -> Result<()> {
    steps::run(&mut steps::cargo(line)?)
}

/// Licenses, bans and sources always; advisories when somebody brought a copy of their database.
fn deny() -> Result<()> {
    cargo("deny --locked check licenses bans sources")?;
    let Some(database) = env::var_os("GROUNDSWELL_ADVISORY_DB") else {
        println!("   advisories are not checked: GROUNDSWELL_ADVISORY_DB names no copy of the RustSec database");
        return Ok(());
    };
    let database = database.to_str().context("GROUNDSWELL_ADVISORY_DB is not UTF-8")?;
    // Only a configuration file can say where the database is, and `[advisories]` is the last table of ours.
    let rules = fs::read_to_string(steps::root().join("deny.toml")).context("cannot read deny.toml")?;
    let path = steps::target_dir()?.join("deny-advisories.toml");
    fs::write(&path, format!("{rules}\ndb-path = {database:?}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    steps::run(steps::cargo("deny --locked check advisories --disable-fetch --config")?.arg(&path))
}
