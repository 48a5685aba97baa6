//! Repositories: mirrors of others' and those that Groundswell hosts itself. The git command does the work; this drives it.
//! Must not know of Raft, HTTP frameworks or builds: what a push means is asked of a [`PushSink`].

mod bundle;
mod cgi;
mod command;
mod error;
mod hosted;
mod leftovers;
mod mirror;
mod names;
mod push;

pub use cgi::GitBody;
pub use error::GitError;
pub use hosted::{Access, HostedRepositories, RepositoryState};
pub use mirror::{Checkout, Mirror, Mirrors, RemoteRefs};
pub use push::{PushRequest, PushSink, UPDATES_MAX};

#[cfg(test)]
mod tests;
