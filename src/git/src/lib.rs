//! Git as a client: the git command, mirrors of repositories, bundles. Must not know of Raft, HTTP or builds.

pub mod bundle;
pub mod command;
pub mod error;
pub mod leftovers;
mod mirror;
pub mod names;

pub use error::GitError;
pub use mirror::{Checkout, Mirror, Mirrors, RemoteRefs};
