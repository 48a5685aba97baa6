//! The rules, one file for each resource: what is carried out, and what is refused with which code.

#![allow(clippy::unwrap_used)]

mod archive;
mod backward;
mod builds;
mod commands;
mod fleet;
mod judging;
mod kept;
mod lost;
mod rollback;
mod rollouts;
mod time;
mod waits;
