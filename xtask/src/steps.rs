//! Running other programs one after another, with the time that each step took. Knows nothing of what the steps are.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

/// The root of the checkout that this was started from. Cargo says it at run time: several checkouts may share a target folder, and
/// with it this very program.
pub fn root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or_else(|| ".".into(), Path::to_owned)
}

/// Where to build: `CARGO_TARGET_DIR`, else a folder outside the checkout that survives it.
pub fn target_dir() -> Result<PathBuf> {
    if let Some(chosen) = env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty()) {
        return std::path::absolute(chosen).context("cannot make CARGO_TARGET_DIR absolute");
    }
    let cache = match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set: set it, or CARGO_TARGET_DIR")?).join(".cache"),
    };
    Ok(cache.join("groundswell/target"))
}

/// Cargo, in the checkout, building where [`target_dir`] says. `line` is split at spaces.
pub fn cargo(line: &str) -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(line.split_whitespace()).current_dir(root()).env("CARGO_TARGET_DIR", target_dir()?);
    // `cargo run` described xtask to us; a cargo below must not take that for its own package.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// Runs a program to its end, its output on ours.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    println!("   $ {shown}");
    let status = command.status().with_context(|| format!("cannot start `{shown}`: is it installed and on PATH?"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

fn show(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let program = Path::new(&words[0]).file_name().map_or(words[0].clone(), |name| name.to_string_lossy().into_owned());
    [&[program], &words[1..]].concat().join(" ")
}

/// Steps in order; each is announced, timed and summed up at the end.
#[derive(Default)]
pub struct Steps {
    done: Vec<(&'static str, f64)>,
}

impl Steps {
    /// Runs one step; its failure ends the command and names the step.
    pub fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("\n== {name}");
        let start = Instant::now();
        let result = work();
        let secs = start.elapsed().as_secs_f64();
        println!("== {name}: {} in {secs:.1} s", if result.is_ok() { "done" } else { "FAILED" });
        self.done.push((name, secs));
        result.with_context(|| format!("step `{name}`"))
    }

    /// One line with every step's time.
    pub fn summary(&self) -> String {
        let parts: Vec<_> = self.done.iter().map(|(name, secs)| format!("{name} {secs:.0} s")).collect();
        parts.join(", ")
    }
}
