//! `cargo xtask mutants`: faults planted in the rules, one by one, and which of them no test notices. `.cargo/mutants.toml` says
//! what is left out, and why.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{steps, tools};

/// Runs cargo-mutants on the rules, on a copy of the checkout; further arguments are its own.
pub fn run(arguments: &[&str]) -> Result<()> {
    tools::install(&[&tools::MUTANTS])?;
    // Apart from the other builds: every mutant rebuilds the rules from another path.
    let target = steps::target_dir()?.join("mutants");
    fs::create_dir_all(&target).with_context(|| format!("failed to create {}", target.display()))?;
    let mut command = steps::cargo("mutants --package swell-model --features testing --output")?;
    command.arg(&target).args(arguments).env("CARGO_TARGET_DIR", &target);
    steps::run(&mut command)
}
