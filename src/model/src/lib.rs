//! Entities, commands, events and the rules of Groundswell. Pure: no I/O, no clock, no randomness; time and ids arrive inside commands.
//!
//! One folder an entity, each with its state, its part of `apply` and the decisions about it:
//! - `build`, `rollout`, `fleet`, `pipeline`, `release`, `repository`, `routing`
//! - `pipeline_file`: what a `swell.toml` may say
//!
//! What all of them share:
//! - `ids`, `units`, `digest`, `principal`: values
//! - `command`, `apply`, `rejection`, `event`, `change`, `tables`: how state changes, who is told, and where it is kept
//! - `archive`: what leaves state some time after its end
//! - `cluster`, `clock`, `actor_failure`: what is true of the cluster as a whole
//! - `interfaces`, `wire`: what crates say to each other, and processes

pub mod actor_failure;
pub mod apply;
pub mod archive;
pub mod build;
pub mod change;
pub mod clock;
pub mod cluster;
pub mod command;
pub mod digest;
pub mod event;
mod event_kind;
pub mod fleet;
pub mod ids;
pub mod interfaces;
pub mod pipeline;
pub mod pipeline_file;
pub mod principal;
pub mod rejection;
pub mod release;
pub mod repository;
pub mod rollout;
pub mod routing;
pub mod tables;
pub mod units;
pub mod wire;

#[cfg(test)]
mod simulation;
