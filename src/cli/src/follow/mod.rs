//! Following a build or a rollout to its end. Table of contents.
//!
//! The server computes what is shown; here it is only looked at, drawn, and turned into an exit code.

mod evidence;
mod lines;
mod live;
mod thing;
mod tree;

pub use evidence::{evidence, failed_targets};
pub use lines::counts;
pub use live::follow;
pub use thing::{Kind, Thing, short_ref};

use swell_model::units::Millis;

/// What commands that follow take.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct FollowArgs {
    /// Leave at once; the work goes on
    #[arg(long, short = 'd')]
    pub detach: bool,
    /// Stop waiting after so long, such as 10m, with exit code 6; the work goes on
    #[arg(long, value_name = "TIME", conflicts_with = "detach")]
    pub timeout: Option<Millis>,
}
