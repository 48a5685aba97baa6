//! From replicated state to what `decide::schedule` decides on: the queue, what pipelines have at work, the room that runners have left.

use std::collections::BTreeMap;

use crate::{
    build::{
        Build, BuildState, OpenBuild, Resources, Runner,
        schedule::{Free, Queued, Schedule, Share, schedule},
    },
    ids::{PipelineName, RunnerName},
    pipeline::Pipeline,
    tables::{ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
};

/// What the scheduler decides on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scheduling {
    /// The builds that wait for a runner, in the order of their numbers.
    pub queue: Vec<Queued>,
    /// What each pipeline with an open build has at work, and may have.
    pub shares: BTreeMap<PipelineName, Share>,
    /// The runners that may be given builds.
    pub runners: Vec<Free>,
}

impl Scheduling {
    /// Who is given to whom now, and why the others wait.
    pub fn schedule(&self) -> Schedule {
        schedule(&self.queue, &self.runners, &self.shares)
    }
}

/// Reads it from state. `is_connected` says which of the registered runners count.
///
/// # Errors
/// When state cannot be read.
pub fn scheduling<T: ReadTables>(tables: &T, is_connected: impl Fn(&RunnerName) -> bool) -> Result<Scheduling, TablesError> {
    let mut found = Scheduling::default();
    let mut taken: BTreeMap<RunnerName, Vec<Resources>> = BTreeMap::new();
    for open in tables.scan::<OpenBuild>(&Scan::all(), SCAN_RECORDS_MAX)? {
        let Some(build) = tables.get::<Build>(&key(open.build.0))? else { continue };
        if !found.shares.contains_key(&build.pipeline) {
            let pipeline: Option<Pipeline> = tables.get(&key(build.pipeline.as_str()))?;
            let most = pipeline.map_or(1, |pipeline| pipeline.concurrency);
            found.shares.insert(build.pipeline.clone(), Share { running: 0, most });
        }
        if let Some(attempt) = build.live_attempt() {
            found.shares.entry(build.pipeline.clone()).and_modify(|share| share.running += 1);
            taken.entry(attempt.runner.clone()).or_default().push(build.resources);
        } else if build.state == BuildState::Queued {
            let Build { id, pipeline, resources, queued_at, .. } = build;
            found.queue.push(Queued { build: id, pipeline, resources, queued_at });
        }
    }
    // Most looks find nothing to give.
    if found.queue.is_empty() {
        return Ok(found);
    }
    for Runner { name, resources: total, .. } in tables.scan(&Scan::all(), SCAN_RECORDS_MAX)? {
        if is_connected(&name) {
            let left = taken.remove(&name).into_iter().flatten().fold(total, Resources::less);
            found.runners.push(Free { runner: name, total, left });
        }
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        apply::testing::{FILE, World, name},
        command::BuildAction,
    };

    #[test]
    fn what_is_at_work_takes_its_room_and_its_share() {
        let (mut world, _) = World::with_fleet(1, FILE);
        let first = world.request(1);
        let idle = scheduling(&world.tables, |_| true).unwrap();
        assert_eq!(idle.queue.iter().map(|queued| queued.build).collect::<Vec<_>>(), [first]);
        assert_eq!(idle.runners[0].left, idle.runners[0].total);

        world.ok(BuildAction::Assign { build: first, runner: name("r1") });
        let second = world.request(2);
        let busy = scheduling(&world.tables, |_| true).unwrap();
        assert_eq!(busy.runners[0].left, busy.runners[0].total.less(idle.queue[0].resources));
        assert_eq!(busy.shares[&busy.queue[0].pipeline].running, 1);
        assert_eq!(busy.queue.iter().map(|queued| queued.build).collect::<Vec<_>>(), [second]);
    }

    #[test]
    fn a_runner_that_is_not_connected_is_given_nothing() {
        let (mut world, _) = World::with_fleet(1, FILE);
        let build = world.request(1);
        let apart = scheduling(&world.tables, |_| false).unwrap().schedule();
        assert!(apart.assign.is_empty() && apart.waits.contains_key(&build), "{apart:?}");
    }
}
