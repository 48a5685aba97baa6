//! The agent from outside: real instances under real shims, with a server that is made up. Needs root, and says so where it is not.

#![allow(clippy::unwrap_used, missing_docs)]

mod converge;
mod crashes;
mod rules;
mod sessions;
mod support;
mod switches;
