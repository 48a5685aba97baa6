//! Git as a server: repositories whose refs are state and whose objects are bundles in the content store. The git command speaks the
//! protocol; this drives it. Must not know of builds, actors or the HTTP framework.

mod cgi;
mod commits;
mod hosted;
mod push;
mod pushes;

pub use cgi::GitBody;
pub use commits::{Commits, FoundCommit, ResolveError};
pub use hosted::{Access, HostedRepositories, RepositoryState};
pub use push::{PushRequest, PushSink, SinkError, UPDATES_MAX};
pub use pushes::Pushes;

#[cfg(test)]
mod tests;
