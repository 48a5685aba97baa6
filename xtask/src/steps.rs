//! Running other programs one after another, with the time that each step took. Knows nothing of what the steps are.

use std::{
    env,
    ffi::OsString,
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
    Ok(cache_dir().context("HOME is not set: set it, or CARGO_TARGET_DIR")?.join("target"))
}

/// Where cargo's helpers are installed: one folder a user, whatever the target folder; without a home below the target folder.
pub fn tools_dir() -> Result<PathBuf> {
    match cache_dir() {
        Some(cache) => Ok(cache.join("tools")),
        None => Ok(target_dir()?.join("tools")),
    }
}

fn cache_dir() -> Option<PathBuf> {
    let named = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")))?;
    Some(cache.join("groundswell"))
}

/// Debian's folder of compilers that ask ccache first.
const CCACHE: &str = "/usr/lib/ccache";

/// Cargo, in the checkout, building where [`target_dir`] says, with ccache in front of C and C++ compilers. `line` is split at spaces.
///
/// ccache comes through PATH, the one way in that no build script watches: with CC and CXX set, RocksDB would be compiled anew
/// whenever plain `cargo` and this command take turns.
pub fn cargo(line: &str) -> Result<Command> {
    let mut command = cargo_without_ccache(line)?;
    if Path::new(CCACHE).is_dir() {
        let path = tool_path()?;
        let folders = [PathBuf::from(CCACHE)].into_iter().chain(env::split_paths(&path));
        command.env("PATH", env::join_paths(folders).context("PATH cannot be extended")?);
    }
    Ok(command)
}

/// PATH with our tools first. Cargo looks into its own folder of programs before PATH unless PATH names that folder: so it does, last.
fn tool_path() -> Result<OsString> {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let inherited: Vec<PathBuf> = env::split_paths(&inherited).collect();
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let own = home.map(|home| home.join("bin")).filter(|bin| !inherited.contains(bin));
    let folders = [tools_dir()?.join("bin")].into_iter().chain(inherited).chain(own);
    env::join_paths(folders).context("PATH cannot be extended")
}

/// Like [`cargo`], for what runs the product or tests: the compilers that they start are the machine's own.
pub fn cargo_without_ccache(line: &str) -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(line.split_whitespace()).current_dir(root()).env("CARGO_TARGET_DIR", target_dir()?).env("PATH", tool_path()?);
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
