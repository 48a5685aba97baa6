//! How a build runs, and how an instance of a service does: sandbox, shim process, output. Must not know of Raft or actors.
//!
//! - `attempts`: one attempt of a build, from the checkout to the artifact
//! - `shim`: the single-threaded process that owns one container or one instance, and what it leaves on disk
//! - `runtime`: the asynchronous side: start a shim, adopt it after a restart, stop it, wait for it
//! - `spool`: the file in which output is kept, as frames
//! - `cgroup`: control groups, version 1, hybrid and 2
//! - `isolation`: what this machine and user allow
//! - `files`: small files that are the old ones or the new ones after a crash
//! - `words`: errors in words

pub mod attempts;
pub mod cgroup;
pub mod files;
pub mod isolation;
pub mod runtime;
pub mod shim;
pub mod spool;
pub mod words;
