//! Simulated clients of a Groundswell server, by the tens of thousands in one process: agents whose instances are simulated, gateways
//! and watchers of events. The connections and the messages are real. Used by benchmarks and by hand (`swell-loadgen`).
//!
//! It must not know how a server works: it sees what an agent, a gateway or a user sees.

pub mod api;
pub mod connect;
pub mod counters;
mod error;
pub mod fleet;
pub mod gateway;
pub mod session;
pub mod target;
pub mod watcher;

pub use error::Error;
