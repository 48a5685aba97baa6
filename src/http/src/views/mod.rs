//! What the API shows, computed here once so that command line and dashboard can never disagree. Ids are text, moments are
//! milliseconds since 1970-01-01T00:00:00Z, lengths of time end in `_ms`, sizes in `_bytes`.

pub mod build;
pub mod build_reason;
pub mod event;
pub mod fleet;
pub mod pipeline;
pub mod plan;
pub mod release;
pub mod rollout;
pub mod targets;
