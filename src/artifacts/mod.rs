//! How bytes are kept and moved.

pub mod git;
