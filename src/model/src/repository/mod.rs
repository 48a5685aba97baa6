//! Repositories that Groundswell hosts: refs and bundles.

pub(crate) mod apply;
mod state;

pub use self::state::{Bundle, CommitId, Ref, RefUpdate, Repository};
