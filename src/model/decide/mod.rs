//! What to do next: pure decisions that the actors ask for. Each is a function of state and of what its caller saw.

pub mod build;
pub mod push;
pub mod rollout;
pub mod schedule;
