//! Follows a build or rollout to its end. Table of contents.
//!
//! The server computes what is shown; this module polls it, draws it, and turns its end into an exit code.

mod evidence;
mod lines;
mod live;
mod resource;
mod tree;

pub use evidence::{evidence, failed_targets};
pub use lines::counts;
pub use live::follow;
pub use resource::{FollowedResource, ResourceKind, short_ref};

use swell_model::units::Millis;

/// The flags of commands that follow what they start.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct FollowArgs {
    /// Do not follow; the work continues
    #[arg(long, short = 'd')]
    pub detach: bool,
    /// Stop waiting after this time, such as 10m, with exit code 6; the work continues
    #[arg(long, value_name = "TIME", conflicts_with = "detach")]
    pub timeout: Option<Millis>,
}
