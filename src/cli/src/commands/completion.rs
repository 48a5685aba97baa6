//! `swell completion`: a script that completes commands and flags in a shell.

use clap::CommandFactory as _;

use crate::{
    args::Cli,
    context::Context,
    failure::{Exit, Result},
};

/// `swell completion SHELL`
#[derive(Debug, clap::Args)]
pub struct CompletionArgs {
    /// For which shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Prints the script. It is not JSON whatever was asked for: a shell reads it.
pub fn run(context: &Context, args: CompletionArgs) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "swell", &mut script);
    context.output.print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
