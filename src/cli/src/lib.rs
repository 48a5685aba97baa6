//! The command line of `swell`: the tree of commands, and the client commands that talk to a server. Table of contents.
//!
//! `main` reads the command line with [`parse`], runs the roles (`server`, `agent` …) itself and hands every other command to [`run`].
//! Knows the API over HTTP and nothing of servers, storage or actors.

// The command line.
pub mod args;
mod flag_values;
mod globals;
pub mod roles;

// Shared by all commands.
mod check;
mod client;
mod config;
mod context;
mod credentials;
pub mod failure;
mod human;
mod interrupt;
mod output;
mod problem;
mod retry;
mod role_file;
mod sse;
mod suggest;
mod views;

// The commands.
mod commands;
mod follow;
mod start;

pub use args::{Cli, Command};
pub use check::Check;
pub use context::Hooks;
pub use failure::{Exit, Failure};
pub use globals::Globals;
pub use start::{parse, run};

#[cfg(test)]
mod tests;
