//! `cargo xtask demo`: one push from commit to fleet under live traffic, then a bad one turned back.
//! It drives the product as a user would, through `swell` and `git`, and must not link it.

use anyhow::{Context as _, Result, bail};

use crate::{
    Usage, setup,
    steps::{self, Steps},
};

/// What the command line asked for.
#[derive(Debug, Default, PartialEq)]
pub struct Options {
    /// The server's port; the peers' port is the next one. Unset: the product's default.
    pub port: Option<u16>,
    /// Leave everything running at the end, with the dashboard's address.
    pub keep: bool,
}

impl Options {
    /// Reads `[--port N] [--keep]`.
    pub fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match *argument {
                "--keep" => options.keep = true,
                "--port" => {
                    let port = arguments.next().and_then(|text| text.parse().ok()).filter(|port| *port > 0);
                    options.port = Some(port.context(Usage("`--port` needs a number from 1 to 65535".to_owned()))?);
                }
                other => return Err(Usage(format!("demo does not know `{other}`: it takes [--port N] [--keep]")).into()),
            }
        }
        Ok(options)
    }
}

/// Runs the demonstration.
pub fn run(options: &Options) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("set-up", setup::run)?;
    steps.step("build", || steps::run(&mut steps::cargo("build --locked --bin swell")?))?;
    steps.step("show", || show(options))
}

/// The scenes, in order; each will be a function of its own.
fn show(_options: &Options) -> Result<()> {
    bail!("`swell dev` is not there yet, so nothing can be shown: the build is all that this command does so far")
}
