//! The endpoints of a server: REST, event streams, sessions of agents and gateways, git. Table of contents.
//!
//! Handlers propose commands and read state. They know nothing of the actors that act on what was applied.

mod access;
mod app;
mod endpoints;
mod event_stream;
mod input;
mod metrics;
mod page;
mod problem;
mod resources;
mod routes;
mod serve;
mod views;

pub use access::{Needs, Rule, USER_HEADER};
pub use app::{Api, Options};

pub use routes::{openapi, router, rules};
pub use serve::serve;

use app::App;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
