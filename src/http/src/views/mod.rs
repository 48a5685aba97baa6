//! The API's resources, computed here once so that command line and dashboard cannot disagree. Ids are strings, times are
//! milliseconds since 1970-01-01T00:00:00Z, durations end in `_ms`, sizes in `_bytes`, waves count from 1.

pub mod build;
pub mod build_reason;
pub mod event;
pub mod fleet;
pub mod pipeline;
pub mod plan;
pub mod reason;
pub mod release;
pub mod rollout;
pub mod targets;
