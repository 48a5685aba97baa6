//! What the standard library lacks about the machine this process runs on. Knows nothing of Groundswell's own: every crate that does
//! I/O may import it, and it imports none of ours.
//!
//! - `checksummed_file`: small files of one value that survive power cuts and tell when they are damaged
//! - `clock`: the wall clock
//! - `crash`: named points at which tests end this process or an actor
//! - `disk_space`: free space of a file system, asked before much is written
//! - `error_chain`: an error and its causes in one line
//! - `files`: small files that are replaced atomically, and errors that name the file
//! - `sockets`: what becomes of an accepted connection before HTTP is spoken on it

pub mod checksummed_file;
pub mod clock;
pub mod crash;
pub mod disk_space;
pub mod error_chain;
pub mod files;
pub mod sockets;
