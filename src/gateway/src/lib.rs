//! A reverse proxy for HTTP/1.1, HTTP/2 and upgrades that routes by a table of its own.
//! Must not know how tables are derived, nor need a server to keep serving.
//!
//! The life of a request: [`listen`] (connection) → [`proxy`] (service, instance, attempts) → [`headers`] and [`body`] (what is
//! passed on) → [`upgrade`] (tunnels). Beside it: [`table`] (the routes, swapped as a whole), [`balance`] and [`endpoint`] (choice
//! of an instance), [`retry`], [`measure`] (counts), [`admin`] (endpoints for probes and people), [`session`] (updates of the
//! table) and [`table_file`] (the table on disk).

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
pub mod session;
pub mod table;
pub mod table_file;
pub mod upgrade;

pub use config::{GatewayConfig, Limits, Listener, SessionConfig};
pub use listen::{Gateway, GatewayError};
pub use table::TableHandle;

#[cfg(test)]
mod tests;
