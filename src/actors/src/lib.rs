//! Who acts: the supervision tree of a node. Actors hold no fact that they could not read back from state, and every decision they
//! carry out is made in `model`. They may not know of HTTP.
//!
//! ```text
//! Node                       on every server
//! ├─ Fleet                   the agents and gateways connected to this server
//! ├─ Runner (where enabled)  one task for each running attempt
//! └─ Leader                  only while this server leads
//!    ├─ Scheduler            assigns queued builds to runners
//!    ├─ Pipeline × n         pushes to look at, artifacts to let go
//!    ├─ Build × n            watches an attempt, gives it up when its runner is lost
//!    └─ Rollout × n          waves, gates, verdicts, rollback
//! ```

mod board;
mod build;
mod drive;
mod events;
mod fleet;
mod gateway_sessions;
mod leader;
mod node;
mod pipeline;
mod presence;
mod rollout;
mod runner;
mod scheduler;
mod sessions;
mod supervise;
mod sweep;

pub use fleet::FleetHandle;
pub use node::{Handle, LocalRunner, Options, start};
pub use sweep::{SweepError, sweep_unnamed};
