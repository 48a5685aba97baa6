//! Reads the manifests and the source of the workspace and holds them to the rules of the house: who may import whom,
//! what a pure crate may not know, and the habits and the language that a compiler does not enforce.
//!
//! It must not know what the crates do. docs/ARCHITECTURE.md explains the rules. There is one test a rule, so that each
//! can be run alone; beside it stand planted violations that the rule must catch and legal code that it must pass.

#![allow(clippy::unwrap_used)]

mod circles;
mod circles_known;
mod comments;
mod docs;
mod events;
mod files;
mod habits;
mod known;
mod manifests;
mod manifests_planted;
mod modules;
mod names;
mod purity;
mod spelling;
mod unused;
mod violation;
mod walk;
mod workspace;
