//! Leaving state for the archive, and forgetting events.

use crate::{
    apply::testing::*,
    archive::{Archivable, ArchiveEntry, due_for_archive},
    build::{Build, BuildByCommit},
    command::*,
    digest::Digest,
    event::{Event, EventKind, EventSeq},
    ids::BuildId,
    pipeline::Retention,
    release::{Artifact, Release, release_key, retention::expired_artifacts},
    rollout::{Purpose, Rollout},
    tables::{ReadTables, Record, Scan, key},
    units::{Millis, Timestamp},
};

fn count<R: Record>(world: &World) -> usize {
    world.tables.scan::<R>(&Scan::all(), 1000).unwrap().len()
}

/// Archives whatever is due, as the leader does, until nothing is.
fn archive(world: &mut World) {
    loop {
        let entries = due_for_archive(&world.tables, world.now, 10).unwrap();
        if entries.is_empty() {
            return;
        }
        world.ok(ArchiveAction::Remove { entries, segment: Digest::of(b"segment") });
    }
}

fn history(millis: u64) -> Retention {
    Retention { releases: 3, age: Millis(0), history: Millis(millis) }
}

#[test]
fn ended_records_leave_state_after_the_pipelines_history_and_what_is_referred_to_stays() {
    let (mut world, file) = World::with_fleet(1, FILE);
    world.retain(history(100_000_000));
    let releases: Vec<_> = (1..=60).map(|number| world.deployed(number, &file)).collect();
    archive(&mut world);
    assert_eq!((count::<Build>(&world), count::<Rollout>(&world)), (60, 60), "nothing is due");
    // Long after: everything ended is due, and comes back every day while something refers to it.
    for _ in 0..5 {
        world.now = Timestamp(world.now.0 + 200_000_000);
        let digests = expired_artifacts(&world.tables, world.now, 100).unwrap();
        world.ok(ArtifactAction::Delete { digests });
        archive(&mut world);
    }
    assert_eq!(count::<Build>(&world), 1, "the one that its branch stands at");
    let named = world.deployment().history.len();
    assert_eq!(count::<Rollout>(&world), named, "those that the deployment remembers");
    // The releases of these rollouts, and the one that was stable before the oldest of them.
    let oldest = releases.len() - named - 1;
    let left: Vec<Release> = world.tables.scan(&Scan::all(), 1000).unwrap();
    assert_eq!(left.iter().map(|release| &release.id).collect::<Vec<_>>(), releases[oldest..].iter().collect::<Vec<_>>());
    assert_eq!(count::<Artifact>(&world), left.len());
    let newest = releases.last().unwrap();
    assert_eq!(world.get::<Release>(release_key(newest)).id, *newest);
    let former = world.deployment().former(Some(newest)).cloned().unwrap();
    world.start(&former, Purpose::Rollback).unwrap();
}

#[test]
fn build_and_its_index_leave_state_together_and_its_commit_can_be_built_again() {
    let (mut world, _) = World::with_fleet(1, FILE);
    world.retain(history(1000));
    let first = world.request(1);
    world.ok(BuildAction::Cancel { build: first });
    let second = world.request(2);
    world.now = Timestamp(world.now.0 + 10_000);
    let entries = due_for_archive(&world.tables, world.now, 10).unwrap();
    assert_eq!(entries.iter().map(|entry| entry.what.clone()).collect::<Vec<_>>(), [Archivable::Build(first)]);
    let applied = world.ok(ArchiveAction::Remove { entries, segment: Digest::of(b"segment") });
    assert_eq!(applied.events.iter().map(|event| event.kind).collect::<Vec<_>>(), [EventKind::BuildArchived]);
    assert_eq!(count::<BuildByCommit>(&world), 1);
    assert!(world.tables.get::<Build>(&key(first.0)).unwrap().is_none());
    assert_eq!(world.request(2), second);
    assert_eq!(world.request(1), BuildId(second.0 + 1));
}

#[test]
fn archiving_is_refused_before_it_is_due_and_does_nothing_twice() {
    let (mut world, _) = World::with_fleet(1, FILE);
    world.retain(history(1_000_000));
    let build = world.request(1);
    world.ok(BuildAction::Cancel { build });
    world.request(2);
    let entries: Vec<ArchiveEntry> = world.tables.scan(&Scan::all(), 9).unwrap();
    let remove = |entries: &[ArchiveEntry]| ArchiveAction::Remove { entries: entries.to_vec(), segment: Digest::of(b"s") };
    assert_eq!(world.refused(remove(&entries)), "invalid");
    world.now = entries[0].due_at;
    assert_eq!(world.ok(remove(&entries)).events.len(), 1);
    assert_eq!(world.ok(remove(&entries)).events.len(), 0);
    assert_eq!(world.refused(remove(&vec![entries[0].clone(); 501])), "invalid");
}

#[test]
fn last_release_of_a_removed_pipeline_keeps_its_number_taken() {
    let (mut world, file) = World::with_fleet(1, FILE);
    world.retain(history(1000));
    world.release(1, &file);
    let newest = world.release(2, &file);
    world.ok(PipelineAction::Remove { name: name("shop") });
    for _ in 0..4 {
        world.now = Timestamp(world.now.0 + 40 * 86_400_000);
        archive(&mut world);
    }
    let left: Vec<Release> = world.tables.scan(&Scan::all(), 9).unwrap();
    assert_eq!(left.into_iter().map(|release| release.id).collect::<Vec<_>>(), [newest]);
}

#[test]
fn events_are_forgotten_once_and_only_up_to_the_end_of_the_log() {
    let (mut world, file) = World::with_fleet(1, FILE);
    world.release(1, &file);
    let events: Vec<Event> = world.applied.iter().flat_map(|applied| applied.events.clone()).collect();
    let cut = &events[5];
    let forget = |up_to: EventSeq, chain_head| ClusterAction::ForgetEvents { up_to, chain_head, segment: Digest::of(b"segment") };
    assert_eq!(world.refused(forget(EventSeq { index: 9999, ordinal: 0 }, cut.chain_hash())), "invalid");
    world.ok(forget(cut.seq, cut.chain_hash()));
    let cluster: crate::cluster::Cluster = world.get(crate::tables::Key::all());
    assert_eq!((cluster.events_forgotten_to, cluster.events_forgotten_head), (cut.seq, events[6].previous));
    let last = world.applied.last().unwrap().events.last().unwrap();
    assert_eq!(last.kind, EventKind::ClusterEventsForgotten);
    assert_eq!(world.refused(forget(cut.seq, cut.chain_hash())), "invalid", "it is gone");
}
