//! What there is while a server is measured: targets, pipelines, open rollouts. Sets it up through the API; measures nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use swell_loadgen::{
    fleet::{Fleet, FleetOptions},
    target::{FAIL_PERCENT, STALL_PERCENT, START_MS},
};
use swell_model::principal::Role;

use super::PATIENCE;
use crate::{Setup, server::Server};

/// The environment of the connected agents, and the label that selects them.
pub const ENVIRONMENT: &str = "fleet";
const ROLE: &str = "role";
const GROUP: &str = "group";

/// Time that instances take to start, in milliseconds.
pub const START: u64 = 500;

/// How much there is.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Connected agents.
    pub agents: u32,
    /// Other targets that once joined, in groups that are environments of their own.
    pub others: u32,
    pub groups: u32,
    /// Pipelines; all of them run on all agents, and have an open rollout in each group.
    pub pipelines: u32,
}

impl Scale {
    pub fn base(quick: bool) -> Self {
        Self { agents: if quick { 300 } else { 17_000 }, others: 0, groups: 0, pipelines: 1 }
    }

    pub fn large(quick: bool) -> Self {
        let base = Self::base(quick);
        if quick {
            Self { others: 100, groups: 2, pipelines: 2, ..base }
        } else {
            Self { others: 33_000, groups: 25, pipelines: 20, ..base }
        }
    }

    pub fn open_rollouts(&self) -> u32 {
        self.groups * self.pipelines
    }

    /// A server with all of it, and the connected agents, on which the first release of every pipeline runs.
    pub async fn set_up(&self, setup: &Setup) -> Result<(Server, Fleet)> {
        let server = Server::start(setup).await?;
        let api = server.api()?;
        api.post("/v1/environments", &json!({ "name": ENVIRONMENT, "selector": { ROLE: ENVIRONMENT } })).await?;
        for group in 0..self.groups {
            let (name, size) = (group_name(group), self.others / self.groups);
            api.post("/v1/environments", &json!({ "name": name, "selector": { GROUP: name } })).await?;
            let mut options = FleetOptions::new(server.listen, &server.token(Role::Agent)?, size);
            options.first = self.agents + group * size;
            options.labels = [(GROUP.to_owned(), name)].into();
            let fleet = Fleet::start(options)?;
            fleet.connected(PATIENCE).await?;
            fleet.stop().await;
        }
        let mut options = FleetOptions::new(server.listen, &server.token(Role::Agent)?, self.agents);
        options.labels = [(ROLE.to_owned(), ENVIRONMENT.to_owned())].into();
        let fleet = Fleet::start(options)?;
        fleet.connected(PATIENCE).await?;
        for number in 0..self.pipelines {
            let pipeline = pipeline_name(number);
            server.create_pipeline(&pipeline).await?;
            let release = server.push(&pipeline, &rolling(0, 0), "first").await?;
            let rollout = server.deploy(&pipeline, ENVIRONMENT, &release).await?;
            let state = server.ended(&rollout, PATIENCE).await?;
            ensure!(state == "deployed", "the first rollout of {pipeline} ended as {state}");
            for group in 0..self.groups {
                // Open for as long as nobody is connected there.
                server.deploy(&pipeline, &group_name(group), &release).await?;
            }
        }
        Ok((server, fleet))
    }
}

/// Name of a pipeline.
pub fn pipeline_name(number: u32) -> String {
    format!("pipeline-{number}")
}

fn group_name(group: u32) -> String {
    format!("group-{group}")
}

/// A pipeline file whose rollouts change all targets at once; on a share of them it fails, on another it never ends.
pub fn rolling(fail_percent: u32, stall_percent: u32) -> String {
    let deploy = "strategy = \"rolling\"\nmax_unavailable = \"100%\"\nmax_failures = \"50%\"\ndeadline = \"1h\"";
    file(fail_percent, stall_percent, deploy)
}

/// A pipeline file whose rollouts begin with one target and look at it for long.
pub fn canary(bake: Duration) -> String {
    file(
        0,
        0,
        &format!("strategy = \"canary\"\nwaves = [1, \"100%\"]\nmax_unavailable = \"100%\"\nbake = \"{}s\"", bake.as_secs()),
    )
}

fn file(fail_percent: u32, stall_percent: u32, deploy: &str) -> String {
    format!(
        "[service.web]\ncommand = [\"web\"]\nports = {{ http = \"auto\" }}\nhealth = {{ http = \"/\" }}\n\
         env = {{ {START_MS} = \"{START}\", {FAIL_PERCENT} = \"{fail_percent}\", {STALL_PERCENT} = \"{stall_percent}\" }}\n\
         [deploy.{ENVIRONMENT}]\n{deploy}\n"
    )
}
