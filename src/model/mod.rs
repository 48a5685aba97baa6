//! What is true and what may change: ids, entities, commands, events and the rules. Pure: no I/O, no clock, no randomness.

// Words.
pub mod digest;
pub mod ids;
pub mod principal;
pub mod units;

// What is true.
pub mod build;
pub mod cluster;
pub mod event;
pub mod fleet;
pub mod observation;
pub mod pipeline;
pub mod pipeline_file;
pub mod release;
pub mod repository;
pub mod rollout;
pub mod tables;
pub mod trouble;

// What may change.
pub mod apply;
pub mod availability;
pub mod command;
pub mod ports_kept;
pub mod rejection;
pub mod retention;

// What follows from it.
pub mod decide;
pub mod desired;
pub mod plan;
pub mod planning;
pub mod routes;
pub mod routing;
pub mod scheduling;

#[cfg(test)]
mod simulation;

// What modules say to each other.
pub mod ports;
pub mod wire;
