//! Confining and supervising a process: a phase of a build, or an instance of a service. Must not know of builds, targets or Raft.
//!
//! - `shim`: the single-threaded process that owns one container or one process, and what it leaves on disk
//! - `runtime`: the asynchronous side: start a shim, adopt it after a restart, stop it, wait for it
//! - `spool`: the file in which output is kept, as frames
//! - `cgroup`: control groups, version 1, hybrid and 2
//! - `isolation`: what this machine and user allow

pub mod cgroup;
pub mod isolation;
pub mod runtime;
pub mod shim;
pub mod spool;
