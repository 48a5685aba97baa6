//! A build: one attempt of it, from the checkout to the artifact. Must not know of Raft or actors.

pub mod attempts;
