//! How traffic is split: a reverse proxy for HTTP/1.1, HTTP/2 and upgrades, with its own route table.
//! Must not know how tables are derived, nor need a server to keep serving.
//!
//! A request's way: [`listen`] (connection) → [`proxy`] (which service, which instance, how often) → [`headers`] and
//! [`body`] (what crosses) → [`upgrade`] (when it becomes a tunnel). Beside it: [`table`] (the routes, swapped as a
//! whole), [`balance`] and [`endpoint`] (which instance), [`retry`] (when again), [`measure`] (what was seen),
//! [`admin`] (what people and probes may ask), [`session`] (where tables come from).

pub mod admin;
pub mod balance;
pub mod body;
pub mod config;
pub mod endpoint;
pub mod headers;
pub mod listen;
pub mod measure;
pub mod problem;
pub mod proxy;
pub mod retry;
pub mod saved;
pub mod session;
pub mod table;
pub mod upgrade;

pub use config::{GatewayConfig, Limits, Listener, SessionConfig};
pub use listen::{Gateway, GatewayError};
pub use table::TableHandle;

#[cfg(test)]
mod tests;
