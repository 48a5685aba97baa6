//! How the outside reaches it: REST, events, sessions of agents and gateways, git. It proposes commands and reads state;
//! whoever acts on what was applied is none of its business.

mod access;
mod app;
mod input;
mod metrics;
mod page;
mod problem;
mod resources;
mod routes;
mod serve;
mod views;

pub use access::{Needs, RULES, Rule, USER_HEADER};
pub use app::{Api, Options};

pub use routes::{openapi, router};
pub use serve::serve;

use app::App;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
