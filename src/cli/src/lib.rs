//! The client commands: what people and scripts type. Table of contents.
//!
//! `main` reads the command line with [`parse`], plays the roles itself ([`Command::is_role`]) and hands everything else to [`run`].
//! Knows the API over HTTP and nothing of servers, storage or actors.

// What can be typed.
pub mod args;
pub mod roles;

// What every command works with.
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
mod views;

// What they do.
mod commands;
mod follow;
mod start;

pub use args::{Cli, Command, Globals};
pub use commands::doctor::Check;
pub use context::Hooks;
pub use failure::{Exit, Failure};
pub use start::{parse, run};

#[cfg(test)]
mod tests;
