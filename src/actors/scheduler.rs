//! The scheduler: gives queued builds to runners as `model::decide::schedule` says.

use std::{collections::BTreeMap, time::Duration};

use super::{
    drive::{After, Drive, DriveError},
    leader::Leading,
};
use crate::model::{
    build::{Build, BuildState, OpenBuild, Runner},
    command::BuildAction,
    decide::schedule::{Free, Queued, Share, schedule},
    ids::{PipelineName, RunnerName},
    pipeline::Pipeline,
    ports::ProposeError,
    tables::{ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
    units::ByteSize,
};

/// How often it looks when nothing happens: a runner may have come.
const TICK: Duration = Duration::from_secs(2);

/// Drives the queue.
pub(super) struct SchedulerDrive;

impl Drive for SchedulerDrive {
    const NAME: &'static str = "scheduler";

    async fn look(&mut self, leading: &Leading) -> Result<After, DriveError> {
        let view = leading.node.view();
        let open = open_builds(&view)?;
        if !open.iter().any(|build| build.state == BuildState::Queued && build.live_attempt().is_none()) {
            return Ok(After::Wait);
        }
        let (queue, shares) = queue_and_shares(&view, &open)?;
        let runners = free_runners(&view, &open, &leading.board.connected())?;
        drop(view);
        for (build, runner) in schedule(&queue, &runners, &shares).assign {
            match leading.propose(Self::NAME, BuildAction::Assign { build, runner }).await {
                Ok(_) => {}
                // Canceled or assigned meanwhile: the next look sees it.
                Err(ProposeError::Rejected(rejection)) => tracing::debug!(%build, %rejection, "an assignment was rejected"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(After::Look(TICK))
    }
}

fn open_builds<T: ReadTables>(view: &T) -> Result<Vec<Build>, TablesError> {
    let mut builds = Vec::new();
    for open in view.scan::<OpenBuild>(&Scan::all(), SCAN_RECORDS_MAX)? {
        builds.extend(view.get::<Build>(&key(open.build.0))?);
    }
    Ok(builds)
}

type Shares = BTreeMap<PipelineName, Share>;

fn queue_and_shares<T: ReadTables>(view: &T, open: &[Build]) -> Result<(Vec<Queued>, Shares), TablesError> {
    let mut queue = Vec::new();
    let mut shares = Shares::new();
    for build in open {
        if !shares.contains_key(&build.pipeline) {
            let pipeline: Option<Pipeline> = view.get(&key(build.pipeline.as_str()))?;
            let most = pipeline.map_or(1, |pipeline| pipeline.concurrency);
            shares.insert(build.pipeline.clone(), Share { running: 0, most });
        }
        if build.live_attempt().is_some() {
            shares.entry(build.pipeline.clone()).and_modify(|share| share.running += 1);
        } else if build.state == BuildState::Queued {
            let (pipeline, resources) = (build.pipeline.clone(), build.resources);
            queue.push(Queued { build: build.id, pipeline, resources, queued_at: build.queued_at });
        }
    }
    Ok((queue, shares))
}

fn free_runners<T: ReadTables>(
    view: &T,
    open: &[Build],
    connected: &std::collections::BTreeSet<RunnerName>,
) -> Result<Vec<Free>, TablesError> {
    let runners: Vec<Runner> = view.scan(&Scan::all(), SCAN_RECORDS_MAX)?;
    let free = runners.into_iter().filter(|runner| connected.contains(&runner.name)).map(|runner| {
        let taken = open.iter().filter(|build| build.live_attempt().is_some_and(|attempt| attempt.runner == runner.name));
        let left = taken.fold(runner.resources, |mut left, build| {
            left.cpu_millis = left.cpu_millis.saturating_sub(build.resources.cpu_millis);
            left.memory = ByteSize(left.memory.0.saturating_sub(build.resources.memory.0));
            left
        });
        Free { runner: runner.name, total: runner.resources, left }
    });
    Ok(free.collect())
}
