//! `swell completion`: a script that completes commands and flags in a shell.

use crate::{
    context::Context,
    failure::{Exit, Result},
};

/// `swell completion SHELL`
#[derive(Debug, clap::Args)]
pub struct CompletionArgs {
    /// Shell to complete for
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Prints the script for the tree of commands, also with `--json`: a shell reads it.
pub fn run(context: &Context, args: CompletionArgs, command: &mut clap::Command) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "swell", &mut script);
    context.output.print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
