//! A gateway as clients and operators meet it: real sockets on loopback, real hyper servers behind it.
#![allow(clippy::unwrap_used)]

mod correctness;
mod resilience;
mod state;
pub(super) mod support;
