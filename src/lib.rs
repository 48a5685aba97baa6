//! Groundswell turns a `git push` into a healthy fleet, and a bad push back before users notice.
//!
//! The map of the modules; docs/ARCHITECTURE.md walks one push through them.

pub mod artifacts;
pub mod cli;
pub mod crash;
pub mod gateway;
pub mod model;
pub mod runner;
