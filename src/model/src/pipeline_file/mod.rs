//! `swell.toml`: what a repository says about how it is built, run and rolled out. Table of contents.
//!
//! [`PipelineFile::parse`] reads a text and reports everything that is wrong with it at once; [`unsupported`] says what
//! this version understands but does not carry out yet; [`PathFilter`] decides whether a push concerns the pipeline;
//! [`expand`] fills in `${…}` on a target; [`json_schema`] is the published schema. Knows nothing of files, servers or builds.

mod build;
mod check;
mod deploy;
mod diagnostic;
mod file;
mod gates;
mod health;
mod interpolate;
mod paths;
mod quantities;
mod read;
mod schema;
mod service;
mod task;
mod unsupported;

pub use build::{Build, Cache, Image, Network, Package, Test};
pub use deploy::{Deploy, Order, Rollback, Spread, Strategy, WAVES_MAX};
pub use diagnostic::{Diagnostic, render_all};
pub use file::{FILE_BYTES_MAX, PipelineFile};
pub use gates::{Analysis, AnalysisMode, Gate, Judge, Sticky};
pub use health::{Health, Probe};
pub use interpolate::{InterpolationError, Variable, expand, variables};
pub use paths::PathFilter;
pub use quantities::Thousandths;
pub use schema::json_schema;
pub use service::{Limits, Log, Port, SecretUse, Service, Signal, Start, Stop};
pub use task::{EnvironmentSettings, RunOn, Task};

#[cfg(test)]
mod tests;
