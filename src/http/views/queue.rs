//! Why builds wait: the scheduler's own decision, asked about state. Which runners are connected is not in state, so all that
//! registered count.

use std::collections::BTreeMap;

use crate::model::{
    build::{Build, BuildState, OpenBuild, Resources, Runner},
    decide::schedule::{Free, Queued, Share, schedule},
    event::Subject,
    ids::{BuildId, PipelineName},
    pipeline::Pipeline,
    tables::{ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
    trouble::{Trouble, trouble_key},
    units::ByteSize,
};

/// What each queued build waits for, in a phrase.
pub fn waits<T: ReadTables>(tables: &T) -> Result<BTreeMap<BuildId, String>, TablesError> {
    let mut queue = Vec::new();
    let mut shares: BTreeMap<PipelineName, Share> = BTreeMap::new();
    let mut used: BTreeMap<_, (u32, u64)> = BTreeMap::new();
    let mut waits = BTreeMap::new();
    let scheduler: Option<Trouble> = tables.get(&trouble_key(&Subject::Cluster))?;
    for open in tables.scan::<OpenBuild>(&Scan::all(), SCAN_RECORDS_MAX)? {
        let Some(build) = tables.get::<Build>(&key(open.build.0))? else { continue };
        if let Some(trouble) = tables.get::<Trouble>(&trouble_key(&Subject::Build(build.id)))? {
            waits.insert(build.id, trouble.waits_for());
        }
        if !shares.contains_key(&build.pipeline) {
            let pipeline: Option<Pipeline> = tables.get(&key(build.pipeline.as_str()))?;
            let most = pipeline.map_or(1, |pipeline| pipeline.concurrency);
            shares.insert(build.pipeline.clone(), Share { running: 0, most });
        }
        match build.live_attempt() {
            Some(attempt) => {
                let room = used.entry(attempt.runner.clone()).or_default();
                *room = (room.0 + build.resources.cpu_millis, room.1 + build.resources.memory.0);
                shares.entry(build.pipeline).and_modify(|share| share.running += 1);
            }
            None if build.state == BuildState::Queued => queue.push(Queued {
                build: build.id,
                pipeline: build.pipeline,
                resources: build.resources,
                queued_at: build.queued_at,
            }),
            None => {}
        }
    }
    if let Some(trouble) = scheduler {
        waits.extend(queue.iter().map(|queued| (queued.build, trouble.waits_for())));
        return Ok(waits);
    }
    if queue.is_empty() {
        return Ok(waits);
    }
    let runners: Vec<Runner> = tables.scan(&Scan::all(), SCAN_RECORDS_MAX)?;
    let free: Vec<Free> = runners.into_iter().map(|runner| free(runner, &used)).collect();
    let decided = schedule(&queue, &free, &shares);
    for (build, why) in decided.waits {
        waits.entry(build).or_insert_with(|| why.to_string());
    }
    for (build, runner) in decided.assign {
        waits.entry(build).or_insert_with(|| format!("its turn on runner {runner}"));
    }
    Ok(waits)
}

fn free(runner: Runner, used: &BTreeMap<crate::model::ids::RunnerName, (u32, u64)>) -> Free {
    let (cpu, memory) = used.get(&runner.name).copied().unwrap_or_default();
    let total = runner.resources;
    let left =
        Resources { cpu_millis: total.cpu_millis.saturating_sub(cpu), memory: ByteSize(total.memory.0.saturating_sub(memory)) };
    Free { runner: runner.name, total, left }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::{
        apply::testing::{FILE, World, name},
        command::BuildAction,
    };

    #[test]
    fn a_queued_build_says_why_it_waits() {
        let (mut world, _) = World::with_fleet(1, FILE);
        let first = world.request(1);
        assert_eq!(waits(&world.tables).unwrap()[&first], "its turn on runner r1");
        world.ok(BuildAction::Assign { build: first, runner: name("r1") });
        world.ok(BuildAction::Acknowledge { build: first, attempt: 1, unisolated: None });
        let second = world.request(2);
        let why = &waits(&world.tables).unwrap()[&second];
        assert!(why.contains("as many as its concurrency allows"), "{why}");
    }
}
