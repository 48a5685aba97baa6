//! Groundswell turns a `git push` into a healthy fleet, and a bad push back before users notice.
//!
//! The map of the modules; docs/ARCHITECTURE.md walks one push through them.

pub mod actors;
pub mod agent;
pub mod artifacts;
pub mod cli;
pub mod crash;
pub mod gateway;
pub mod http;
pub mod model;
pub mod raft;
pub mod runner;
pub mod security;
pub mod sockets;
pub mod storage;
