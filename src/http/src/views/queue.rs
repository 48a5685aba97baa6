//! What queued builds wait for: the scheduler's decision, computed from state. State does not tell which runners are connected, so all
//! registered ones count.

use std::collections::BTreeMap;

use swell_model::{
    actor_failure::{ActorFailure, actor_failure_key},
    build::{OpenBuild, queue::scheduling},
    event::Subject,
    ids::BuildId,
    tables::{ReadTables, SCAN_RECORDS_MAX, Scan, TablesError},
};

/// What each queued build waits for.
pub fn waits<T: ReadTables>(tables: &T) -> Result<BTreeMap<BuildId, String>, TablesError> {
    let mut waits = BTreeMap::new();
    for open in tables.scan::<OpenBuild>(&Scan::all(), SCAN_RECORDS_MAX)? {
        if let Some(trouble) = tables.get::<ActorFailure>(&actor_failure_key(&Subject::Build(open.build)))? {
            waits.insert(open.build, trouble.waits_for());
        }
    }
    let found = scheduling(tables, |_| true)?;
    if let Some(scheduler) = tables.get::<ActorFailure>(&actor_failure_key(&Subject::Cluster))? {
        waits.extend(found.queue.iter().map(|queued| (queued.build, scheduler.waits_for())));
        return Ok(waits);
    }
    let decided = found.schedule();
    for (build, why) in decided.waits {
        waits.entry(build).or_insert_with(|| why.to_string());
    }
    for (build, runner) in decided.assign {
        waits.entry(build).or_insert_with(|| format!("its turn on runner {runner}"));
    }
    Ok(waits)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::{
        apply::testing::{FILE, World, name},
        command::BuildAction,
    };

    #[test]
    fn queued_build_says_what_it_waits_for() {
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
