//! The rules, one file for each resource: what is carried out, and what is refused with which code.

#![allow(clippy::unwrap_used)]

mod archive;
mod builds;
mod commands;
mod fleet;
mod judging;
mod kept;
mod rollback;
mod rollouts;
mod waits;
