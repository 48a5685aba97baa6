//! What the session and all pipelines of an agent share. Must not know how they work.

use std::{path::PathBuf, time::Instant};

use tokio::sync::watch;

use super::{data_folder::Identity, deliver::Origin, launch::Surroundings, options::Timing, reports::Reports};
use swell_model::units::ByteSize;
use swell_sandbox::runtime::ShimRuntime;

/// One for each agent. Not `Debug`: it holds the token.
pub(super) struct Context {
    pub identity: Identity,
    pub data_dir: PathBuf,
    pub around: Surroundings,
    pub runtime: ShimRuntime,
    pub timing: Timing,
    /// Bytes that stay free on the disk of `data_dir`.
    pub reserve: ByteSize,
    pub client: reqwest::Client,
    pub token: String,
    /// Base addresses of the servers, each as `http://ADDRESS:PORT`.
    pub servers: Vec<String>,
    /// The server of the present session.
    pub server: watch::Sender<Option<String>>,
    pub reports: Reports,
    /// The zero of this agent's monotonic milliseconds.
    pub clock: Instant,
}

impl Context {
    /// Returns the milliseconds since `clock`; they never run backwards.
    pub fn now(&self) -> u64 {
        self.clock.elapsed().as_millis() as u64
    }

    /// The servers as a source of bytes, that of the session first.
    pub fn origin(&self) -> Origin {
        let first = self.server.borrow().clone();
        let rest = self.servers.iter().filter(|server| first.as_ref() != Some(server)).cloned();
        let servers = first.clone().into_iter().chain(rest).collect();
        Origin { client: self.client.clone(), token: self.token.clone(), servers }
    }
}
