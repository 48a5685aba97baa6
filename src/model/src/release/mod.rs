//! Artifacts and releases, and how long they are retained.

pub(crate) mod apply;
pub mod retention;
mod state;
pub(crate) mod uses;

pub use self::state::{Artifact, Release, release_key};
pub use self::uses::{ArtifactExpiry, ArtifactUse, ReleaseUse, Uses};
