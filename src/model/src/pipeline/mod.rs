//! Pipelines: registered repositories, and what a push to one asks for.

pub(crate) mod apply;
pub mod push;
mod state;

pub use self::state::{CONCURRENCY_MAX, ConsideredRef, Pipeline, RETAINED_RELEASES_MAX, Retention, Source, considered_key};
