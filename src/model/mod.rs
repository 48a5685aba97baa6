//! What is true and what may change: ids, entities, commands, events and the rules. Pure: no I/O, no clock, no randomness.

pub mod digest;
pub mod ids;
pub mod routes;
pub mod units;
