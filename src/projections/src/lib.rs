//! Projections of replicated state: each holds what one kind of reader needs, built once with `from_tables` and kept up to date with
//! `update`, whose cost follows what changed. Pure structures: they know nothing of Raft, actors or connections.
//!
//! - `assignments`: what each target should run
//! - `observations`: what is known of each target's reports
//! - `presence`: which agents are connected
//! - `routes`: instances of every service that takes traffic, and what each gateway holds of them
//! - `open_rollouts`: rollouts at work, by pipeline and by target
//! - `targets`: targets by name and by address
//! - `build_queue`: queued builds, and what runners and pipelines have at work
//! - `event_tail`: the newest events, for streams

pub mod assignments;
pub mod build_queue;
pub mod event_tail;
pub mod observations;
pub mod open_rollouts;
pub mod presence;
pub mod routes;
pub mod targets;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
