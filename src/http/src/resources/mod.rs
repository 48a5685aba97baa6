//! A file for each kind of resource of the API. Table of contents.

pub mod artifacts;
pub mod blobs;
pub mod builds;
pub mod cluster;
pub mod environments;
pub mod events;
pub mod git;
pub mod health;
pub mod logs;
pub mod pipelines;
pub mod plans;
pub mod push;
pub mod releases;
pub mod repositories;
pub mod rollbacks;
pub mod rollouts;
pub mod runners;
pub mod sessions;
pub mod targets;
pub mod why;
