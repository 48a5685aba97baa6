//! Who acts: the supervision tree of a node. Actors hold no fact that they could not read back from state, and every decision they
//! carry out is made in `model`. They may not know of HTTP.
//!
//! ```text
//! Sessions                   on every server: tasks that serve the agents and gateways connected to it
//! Node                       on every server
//! ├─ Runner (where enabled)  one task for each running attempt
//! └─ Leader                  only while this server leads
//!    ├─ Scheduler            assigns queued builds to runners
//!    ├─ Pipeline × n         pushes to look at, artifacts to let go
//!    ├─ Build × n            watches an attempt, gives it up when its runner is lost
//!    └─ Rollout × n          waves, gates, verdicts, rollback
//! ```

mod build;
mod controller;
mod gateway_sessions;
mod leader;
mod leader_context;
mod leader_projections;
mod node;
mod pipeline;
mod presence;
mod reconciler;
mod rollout;
mod runner;
mod runner_liveness;
mod scheduler;
mod sessions;
mod supervise;
mod sweep;

pub use node::{Handle, Options, start};
pub use runner::LocalRunner;
pub use sessions::Sessions;
pub use sweep::{SweepError, sweep_unnamed};
