//! Artifacts as bytes: deterministic archives, manifests, the content store, serving and fetching by range.
//! Knows nothing of Raft, actors or permissions.
//!
//! A build's `$OUT` goes through [`archive::pack`] into a [`store::ContentStore`], is described by a [`manifest::Manifest`], leaves
//! through [`serve::serve_content`], arrives through [`fetch::fetch`] and is unpacked on a target's disk by [`unpack::unpack`].

pub mod archive;
pub mod fetch;
mod hash;
pub mod log;
pub mod manifest;
pub mod pieces;
pub mod serve;
pub mod store;
mod tree;
pub mod unpack;

#[cfg(test)]
mod testing;
