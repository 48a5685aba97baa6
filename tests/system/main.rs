//! The whole system: real `swell` processes, real git, real containers, real ports. A test asserts what a user would notice.

#![allow(clippy::unwrap_used)]

mod actors;
mod chaos;
mod conditions;
mod harness;
mod outage;
mod push;
mod refusals;
mod traffic;
mod upstream;
