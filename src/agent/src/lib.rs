//! How a server of the fleet converges on what it should run, and keeps it running with no server at all.
//! Must not know of Raft, HTTP handlers or how desired state is computed.
//!
//! - `options`: what an agent is told when it starts
//! - `host`: the agent itself: one for each data folder, its session and a task for each pipeline
//! - `session`: the one connection to one server, and finding another
//! - `saved`: small files that are the old ones or the new ones after a power cut
//! - `journal`: what is recorded of one pipeline
//! - `decide`: the rules, pure: what is wanted, recorded and seen gives the next step
//! - `pipeline`: takes the steps of one pipeline, one after the other
//! - `steps`: what each step does to the disk and to processes
//! - `deliver`: brings a release to the disk
//! - `launch`: what an instance is started with: command, environment, user, folders
//! - `kept`: the folders that a service keeps across releases
//! - `watch`: the task beside each running instance: probes, and waits for its end
//! - `probe`: asks an instance whether it works
//! - `taken`: which other program has a port
//! - `evidence`: what is kept of a failure
//! - `reports`: what is to be told to servers
//!
//! The data folder:
//!
//! | path | meaning |
//! |---|---|
//! | `lock` | held by the agent as long as it lives |
//! | `id` | what tells this agent from another with its name |
//! | `desired` | the last desired state, with its generation |
//! | `current/PIPELINE` | link to the folder of the release that is active |
//! | `pipelines/PIPELINE/journal` | which instances there are and why |
//! | `pipelines/PIPELINE/releases/HEX` | releases by the digest of their artifact |
//! | `pipelines/PIPELINE/fetch/` | archives on their way |
//! | `pipelines/PIPELINE/instances/SERVICE-RUN` | the folders of the shims |
//!
//! Crash points, each passed after what it is called: `agent::desired_saved`, `agent::fetched`, `agent::unpacked`,
//! `agent::start_recorded`, `agent::started`, `agent::failure_recorded`, `agent::switch_recorded`, `agent::linked`,
//! `agent::leave_recorded`, `agent::stop_asked`, `agent::cleared`, `agent::forgotten`, `agent::removed`.

mod decide;
mod deliver;
mod evidence;
mod host;
mod journal;
mod kept;
mod launch;
mod options;
mod pipeline;
mod probe;
mod reports;
mod saved;
mod session;
mod steps;
mod taken;
mod watch;

pub use self::{
    decide::UNHEALTHY_AFTER_FAILURES,
    host::Agent,
    options::{AgentError, AgentOptions, Timing},
};
