//! The options that every command takes. Knows nothing of commands, so that settings and context can use it.

use std::path::PathBuf;

use super::output::ColorChoice;

/// The options that every command takes.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Print the result as JSON on standard output; for roles, log as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Address of the server, such as http://10.0.0.1:7400
    #[arg(long, global = true, value_name = "URL")]
    pub addr: Option<String>,
    /// Configuration file in place of the user's; for roles, of the system's
    #[arg(long = "config", global = true, value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// File that holds the token
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// When to use colors
    #[arg(long, global = true, value_name = "WHEN", value_enum)]
    pub color: Option<ColorChoice>,
    /// Print only the result and errors, no progress
    #[arg(long, short, global = true)]
    pub quiet: bool,
}
