//! From replicated state to what the scheduler decides on, and what each build waits for.

use std::collections::BTreeMap;

use crate::{
    actor_failure::{ActorFailure, actor_failure_key},
    build::{
        Build, BuildState, PipelineLoad, QueuedBuild, Runner, RunnerLoad,
        schedule::{BuildWait, Free, Queued, Schedule, Share, schedule},
    },
    event::Subject,
    ids::{BuildId, PipelineName, RunnerName},
    pipeline::Pipeline,
    tables::{ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
};

/// What the scheduler decides on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scheduling {
    /// The builds that wait for a runner, the longest waiting first.
    pub queue: Vec<Queued>,
    /// What each pipeline with a queued build has running, and may have.
    pub shares: BTreeMap<PipelineName, Share>,
    /// The runners that may be given builds.
    pub runners: Vec<Free>,
}

impl Scheduling {
    /// Which builds are assigned now, and what the others wait for.
    pub fn schedule(&self) -> Schedule {
        schedule(&self.queue, &self.runners, &self.shares)
    }
}

/// Reads it from state. `is_connected` says which of the registered runners count. Reads the queue and the runners, not what is running.
///
/// # Errors
/// When state cannot be read.
pub fn scheduling<T: ReadTables>(tables: &T, is_connected: impl Fn(&RunnerName) -> bool) -> Result<Scheduling, TablesError> {
    let mut found = Scheduling::default();
    tables.for_each(Scan::all(), |queued: QueuedBuild| {
        let QueuedBuild { build, pipeline, resources, queued_at, .. } = queued;
        found.queue.push(Queued { build, pipeline, resources, queued_at });
    })?;
    if found.queue.is_empty() {
        return Ok(found);
    }
    for queued in &found.queue {
        if !found.shares.contains_key(&queued.pipeline) {
            let by_name = key(queued.pipeline.as_str());
            let most = tables.get(&by_name)?.map_or(1, |pipeline: Pipeline| pipeline.concurrency);
            let running = tables.get(&by_name)?.map_or(0, |load: PipelineLoad| load.running);
            found.shares.insert(queued.pipeline.clone(), Share { running, most });
        }
    }
    for Runner { name, resources: total, .. } in tables.scan(&Scan::all(), SCAN_RECORDS_MAX)? {
        if is_connected(&name) {
            let load: Option<RunnerLoad> = tables.get(&key(name.as_str()))?;
            let left = load.map_or(total, |load| total.less(load.resources));
            found.runners.push(Free { runner: name, total, left });
        }
    }
    Ok(found)
}

/// What each queued build waits for, by the scheduler's own decision. Which runners are connected is not in state, so all that registered
/// count.
///
/// # Errors
/// When state cannot be read.
pub fn queue_waits<T: ReadTables>(tables: &T) -> Result<BTreeMap<BuildId, BuildWait>, TablesError> {
    let found = scheduling(tables, |_| true)?;
    let scheduler: Option<ActorFailure> = tables.get(&actor_failure_key(&Subject::Cluster))?;
    let decided = found.schedule();
    let turns = decided.assign.into_iter().map(|(build, runner)| (build, BuildWait::Turn { runner }));
    let mut waits: BTreeMap<BuildId, BuildWait> = decided.waits.into_iter().chain(turns).collect();
    for (build, wait) in &mut waits {
        let own: Option<ActorFailure> = tables.get(&actor_failure_key(&Subject::Build(*build)))?;
        if let Some(failure) = scheduler.clone().or(own) {
            *wait = BuildWait::ActorFailing { failure };
        }
    }
    Ok(waits)
}

/// What `build` waits for; none while it works and when it ended. `queued` is what [`queue_waits`] says of it.
pub fn wait_of(build: &Build, queued: Option<BuildWait>) -> Option<BuildWait> {
    if build.state == BuildState::Exhausted {
        return Some(BuildWait::Person);
    }
    match build.live_attempt() {
        Some(attempt) if build.cancel_asked => Some(BuildWait::Stopping { runner: attempt.runner.clone() }),
        Some(attempt) if !attempt.acknowledged => Some(BuildWait::Acknowledgement { runner: attempt.runner.clone() }),
        _ => queued,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        apply::testing::{FILE, World, name},
        command::{BuildAction, ClusterAction},
    };

    #[test]
    fn running_build_takes_its_resources_and_its_share() {
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
    fn runner_that_is_not_connected_is_assigned_nothing() {
        let (mut world, _) = World::with_fleet(1, FILE);
        let build = world.request(1);
        let apart = scheduling(&world.tables, |_| false).unwrap().schedule();
        assert!(apart.assign.is_empty() && apart.waits.contains_key(&build), "{apart:?}");
    }

    #[test]
    fn build_says_what_it_waits_for_from_the_queue_to_its_runner() {
        let (mut world, _) = World::with_fleet(1, FILE);
        let first = world.request(1);
        let runner = name::<RunnerName>("r1");
        assert_eq!(queue_waits(&world.tables).unwrap()[&first], BuildWait::Turn { runner: runner.clone() });
        world.ok(BuildAction::Assign { build: first, runner: runner.clone() });
        let second = world.request(2);
        let waits = queue_waits(&world.tables).unwrap();
        assert_eq!(waits, BTreeMap::from([(second, BuildWait::Concurrency { running: 1 })]));
        let wait = |world: &World, build: BuildId| {
            let queued = queue_waits(&world.tables).unwrap().remove(&build);
            wait_of(&world.get(key(build.0)), queued)
        };
        assert_eq!(wait(&world, first), Some(BuildWait::Acknowledgement { runner: runner.clone() }));
        world.ok(BuildAction::Acknowledge { build: first, attempt: 1, unisolated: None });
        assert_eq!(wait(&world, first), None);
        world.ok(BuildAction::Cancel { build: first });
        assert_eq!(wait(&world, first), Some(BuildWait::Stopping { runner }));
    }

    #[test]
    fn build_waits_for_its_failing_actor_and_for_the_failing_scheduler() {
        let (mut world, _) = World::with_fleet(1, FILE);
        let build = world.request(1);
        let failing = |subject: &Subject, why: Option<&str>| ClusterAction::RecordActorFailure {
            subject: subject.clone(),
            why: why.map(str::to_owned),
        };
        for subject in [Subject::Cluster, Subject::Build(build)] {
            world.ok(failing(&subject, Some("it panics")));
            let wait = queue_waits(&world.tables).unwrap().remove(&build);
            let Some(BuildWait::ActorFailing { failure }) = wait else { panic!("{wait:?}") };
            assert_eq!((&failure.subject, failure.why.as_str()), (&subject, "it panics"));
            world.ok(failing(&subject, None));
        }
        assert!(matches!(queue_waits(&world.tables).unwrap()[&build], BuildWait::Turn { .. }));
    }
}
