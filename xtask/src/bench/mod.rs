//! `cargo xtask bench [NAME]`: builds the product as it ships, runs a benchmark beside its peer, and writes its section of
//! docs/BENCHMARKS.md. Knows what a benchmark prints, not what it measures.
//!
//! `swell-bench NAME` prints JSON lines on standard output: first `{"versions": {PROGRAM: VERSION, …}}`, then a row a line,
//! `{"bench", "case", "ours", "peer", "ratio", "unit", "runs", "note"}`. Progress goes to standard error. The program `swell` of the
//! same build lies in the same folder. Without a name it lists what there is.

mod report;
mod section;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use self::{
    report::Report,
    section::{Place, replace},
};
use crate::steps;

/// Not [`crate::product::SELECTION`]: what is measured has no test support in it.
const BUILD: &str = "build --locked --profile release --package groundswell --package swell-bench --bins";

/// Where results are kept, in the checkout.
const RESULTS: &str = "docs/BENCHMARKS.md";

/// Prints what can be run.
pub fn list() -> Result<()> {
    steps::run(&mut Command::new(build()?))
}

/// Runs one and keeps its rows.
pub fn run(name: &str) -> Result<()> {
    let mut command = Command::new(build()?);
    command.arg(name).current_dir(steps::root()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("failed to start swell-bench")?;
    let stdout = child.stdout.take().context("swell-bench has no standard output")?;
    let mut report = Report::default();
    let mut wrong = None;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("failed to read what swell-bench prints")?;
        println!("   {line}");
        if let Err(error) = report.read(&line) {
            wrong.get_or_insert(error);
        }
    }
    let status = child.wait().context("failed to wait for swell-bench")?;
    ensure!(status.success(), "benchmark {name} failed ({status}): nothing is written");
    if let Some(error) = wrong {
        return Err(error.context(format!("benchmark {name} does not print what is expected: nothing is written")));
    }
    ensure!(!report.rows.is_empty(), "benchmark {name} measured nothing: nothing is written");
    if let Some(row) = report.rows.iter().find(|row| row.bench != name) {
        bail!("benchmark {name} printed a row of benchmark {}: nothing is written", row.bench);
    }

    let place = Place::here()?;
    println!("\n{}\n{}", place.line(), report.table().text());
    let path = steps::root().join(RESULTS);
    write(&path, name, &section::render(name, &place, &report))?;
    println!("written to {RESULTS}, section `{name}`");
    Ok(())
}

fn build() -> Result<std::path::PathBuf> {
    steps::run(&mut steps::cargo(BUILD)?)?;
    Ok(steps::target_dir()?.join("release/swell-bench"))
}

fn write(path: &Path, name: &str, text: &str) -> Result<()> {
    let before = match fs::read_to_string(path) {
        Ok(before) => before,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => section::HEAD.to_owned(),
        Err(error) => return Err(error).with_context(|| format!("failed to read {}", path.display())),
    };
    fs::write(path, replace(&before, name, text)).with_context(|| format!("failed to write {}", path.display()))
}
