//! Artifacts and releases, and how long they are retained.

pub(crate) mod apply;
pub mod retention;
mod state;

pub use self::state::{Artifact, Release, release_key};
