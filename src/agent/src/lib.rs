//! How a server of the fleet converges on what it should run, and keeps it running with no server at all.
//! Must not know of Raft, HTTP handlers or how desired state is computed.
//!
//! - `options`: options of an agent
//! - `host`: the agent itself: one for each data folder, its session and a task for each pipeline
//! - `context`: what those tasks share
//! - `data_folder`: its lock, who the agent is, and what was desired last
//! - `session`, `session_error`: the one connection to one server, and finding another
//! - `reports`: the newest report on each pipeline, and who confirmed it
//! - `journal`: what is recorded of one pipeline
//! - `decide`: the rules, pure: what is desired, recorded and observed gives the next step
//! - `pipeline`: takes the steps of one pipeline, one after the other
//! - `steps`, `start`, `recover`, `disk`: what each step does to the disk and to processes
//! - `deliver`: brings a release to the disk
//! - `launch`: what an instance is started with: command, environment, user, folders
//! - `data_dirs`: the folders that a service keeps across releases
//! - `port_conflicts`: which other program has a port
//! - `refusal`: why an instance is not started
//! - `watch`: the task beside each running instance: probes it and waits for its end
//! - `probe`: asks an instance whether it works
//! - `evidence`: what is kept of a failure
//!
//! The data folder:
//!
//! | path | meaning |
//! |---|---|
//! | `lock` | held by the agent as long as it lives |
//! | `identity` | the agent's id and how often it was started |
//! | `desired` | the last desired state, with its generation |
//! | `current/PIPELINE` | link to the folder of the release that is active |
//! | `pipelines/PIPELINE/journal` | which instances there are and why |
//! | `pipelines/PIPELINE/releases/HEX` | releases by the digest of their artifact |
//! | `pipelines/PIPELINE/fetch/` | archives on their way |
//! | `pipelines/PIPELINE/instances/SERVICE-RUN` | the folders of the shims |
//!
//! Crash points, each passed after what it is called: `agent::desired_saved`, `agent::fetched`, `agent::unpacked`,
//! `agent::start_recorded`, `agent::started`, `agent::failure_recorded`, `agent::switch_recorded`, `agent::linked`,
//! `agent::leave_recorded`, `agent::drain_recorded`, `agent::stop_asked`, `agent::cleared`, `agent::forgotten`, `agent::removed`.

mod context;
mod data_dirs;
mod data_folder;
mod decide;
mod deliver;
mod disk;
mod evidence;
mod host;
mod journal;
mod launch;
mod options;
mod pipeline;
mod port_conflicts;
mod probe;
mod recover;
mod refusal;
mod reports;
mod session;
mod session_error;
mod start;
mod steps;
mod watch;

pub use self::{
    decide::UNHEALTHY_AFTER_FAILURES,
    host::Agent,
    options::{AgentError, AgentOptions, Timing},
};
