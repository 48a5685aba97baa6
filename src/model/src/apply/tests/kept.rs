//! What is kept: artifacts that anything could go back to, and routes to whatever answers.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    apply::testing::*,
    build::Build,
    command::*,
    digest::Digest,
    fleet::observation::{InstanceObserved, InstanceState, Observation, Progress, Report, TargetFailure},
    ids::ReleaseId,
    pipeline::{Retention, Source},
    pipeline_file::PipelineFile,
    principal::Principal,
    release::{
        Artifact, Release, release_key,
        retention::{expired_artifacts, unnamed_content},
    },
    repository::Bundle,
    rollout::{Purpose, RollbackReason},
    routing::derive::route_table,
    tables::{ReadTables, Scan, Tables, key},
    units::{ByteSize, Millis, Timestamp},
};

/// Keeps as little as may be.
const SHORT: Retention = Retention { releases: 3, age: Millis(0), history: Millis(1000) };

fn digest(world: &World, release: &ReleaseId) -> Digest {
    world.get::<Release>(release_key(release)).artifact
}

fn delete(digests: Vec<Digest>) -> ArtifactAction {
    ArtifactAction::Delete { digests }
}

#[test]
fn artifact_that_could_be_gone_back_to_is_never_deleted() {
    let (mut world, file) = World::with_fleet(2, FILE);
    world.retain(SHORT);
    let releases: Vec<_> = (1..=6).map(|number| world.deployed(number, &file)).collect();
    let waiting = world.release(7, &file);
    let id = world.start(&waiting, Purpose::Deploy).unwrap();
    for release in releases[2..].iter().chain([&waiting]) {
        let digest = digest(&world, release);
        assert_eq!(world.refused(delete(vec![digest])), "needed", "{release}");
    }
    let old = digest(&world, &releases[0]);
    world.ok(delete(vec![old]));
    assert_eq!(world.refused(delete(vec![Digest::of(b"nothing")])), "not_found");
    world.complete(id);
    assert_eq!(world.start(&releases[0], Purpose::Rollback).unwrap_err().code(), "artifact_deleted");
    // Quarantined ones cannot be gone back to, and do not take the place of those that can.
    let mut deployment = world.deployment();
    for release in &releases[3..] {
        let (release, rollout) = (release.clone(), id);
        let reason = RollbackReason::Requested { by: Principal::system("test"), text: None };
        let quarantined = crate::rollout::Quarantined { release, rollout, reason, at: Timestamp(0) };
        deployment.quarantined.push(quarantined);
    }
    world.put(&deployment);
    assert_eq!(deployment.former(Some(&waiting)), Some(&releases[2]));
    let former = digest(&world, &releases[2]);
    assert_eq!(world.refused(delete(vec![former])), "needed");
}

#[test]
fn artifact_expires_once_no_release_needs_it_and_no_retention_keeps_it() {
    let (mut world, file) = World::with_fleet(1, FILE);
    world.retain(Retention { releases: 3, age: Millis(100_000), ..Retention::default() });
    let releases: Vec<_> = (1..=5).map(|number| world.release(number, &file)).collect();
    let digests: Vec<_> = releases.iter().map(|release| digest(&world, release)).collect();
    assert_eq!(expired_artifacts(&world.tables, world.now, 10).unwrap(), [], "they are young");
    let later = Timestamp(world.now.0 + 100_000);
    assert_eq!(expired_artifacts(&world.tables, later, 10).unwrap(), digests[..2]);
    assert_eq!(expired_artifacts(&world.tables, later, 1).unwrap(), digests[..1]);
    assert_eq!(world.refused(delete(digests[..1].to_vec())), "needed", "a view that is ahead of state deletes nothing early");
    world.now = later;
    assert_eq!(world.refused(delete(vec![digests[4]])), "needed", "the newest stays, however old it is");
    // The same bytes again: the younger release keeps them.
    let (git_ref, file) = ("refs/heads/main".to_owned(), Box::new(file));
    world.ok(BuildAction::ImportArtifact { pipeline: name("shop"), commit: commit(9), git_ref, artifact: artifact(1), file });
    assert_eq!(expired_artifacts(&world.tables, later, 10).unwrap(), digests[1..3]);
    assert_eq!(world.refused(delete(vec![digests[0]])), "needed");
}

#[test]
fn artifact_of_two_pipelines_is_kept_for_the_longest_retention() {
    let (mut world, file) = World::with_fleet(1, FILE);
    world.retain(Retention { releases: 3, age: Millis(10_000_000), ..Retention::default() });
    let release = world.release(1, &file);
    let shared = digest(&world, &release);
    world.ok(PipelineAction::Create {
        name: name("blog"),
        source: Source::Remote("https://git.example/blog".into()),
        file: "swell.toml".into(),
        concurrency: 1,
        supersede: true,
        retention: SHORT,
    });
    let (git_ref, file) = ("refs/heads/main".to_owned(), Box::new(file));
    world.ok(BuildAction::ImportArtifact { pipeline: name("blog"), commit: commit(1), git_ref, artifact: artifact(1), file });
    world.ok(PipelineAction::Remove { name: name("blog") });
    world.ok(PipelineAction::Remove { name: name("shop") });
    world.now = Timestamp(world.now.0 + 1_000_000);
    assert_eq!(world.refused(delete(vec![shared])), "needed", "the other pipeline's retention is longer");
    world.now = Timestamp(world.now.0 + 10_000_000);
    assert_eq!(expired_artifacts(&world.tables, world.now, 9).unwrap(), [shared], "artifacts of removed pipelines expire too");
    world.ok(delete(vec![shared]));
}

#[test]
fn rebuild_of_the_same_bytes_leaves_the_manifest_of_what_runs() {
    let (mut world, file) = World::with_fleet(1, FILE);
    let release = world.deployed(1, &file);
    let first: Artifact = world.get(key(digest(&world, &release).hex().as_str()));
    let (git_ref, file) = ("refs/heads/main".to_owned(), Box::new(file));
    let artifact = StoredArtifact { manifest: Digest::of(b"another manifest"), ..artifact(1) };
    world.ok(BuildAction::ImportArtifact { pipeline: name("shop"), commit: commit(9), git_ref, artifact, file });
    let now: Artifact = world.get(key(first.digest.hex().as_str()));
    assert_eq!(now.manifest, first.manifest);
    let of_number = |number| release_key(&ReleaseId { number, ..release.clone() });
    assert_eq!([1, 2].map(|number| world.get::<Release>(of_number(number)).manifest), [first.manifest; 2]);
}

#[test]
fn deletion_reads_the_same_number_of_records_whatever_is_deployed() {
    let reads = |releases: u8| {
        let (mut world, file) = World::with_fleet(1, FILE);
        world.retain(SHORT);
        for number in 1..=releases {
            world.deployed(number, &file);
        }
        let digests = expired_artifacts(&world.tables, world.now, 1).unwrap();
        world.ok(delete(digests));
        world.reads
    };
    assert_eq!(reads(6), reads(20));
}

#[test]
fn routes_lead_to_what_answers_whichever_release_it_is_of() {
    let (mut world, file) = World::with_fleet(3, FILE);
    let old = world.deployed(1, &file);
    let renamed = PipelineFile::parse(&FILE.replace("[service.web]", "[service.shop]")).unwrap();
    let new = world.release(2, &renamed);
    world.start(&new, Purpose::Deploy).unwrap();
    let instance = |service: &str, release: &ReleaseId, port, state| InstanceObserved {
        service: name(service),
        release: release.clone(),
        ports: BTreeMap::from([(name("http"), port)]),
        state,
        restarts: 0,
    };
    let say = |world: &mut World, target, instances| {
        let (pipeline, release) = (name("shop"), Some(new.clone()));
        let report = Report { pipeline, release, progress: Progress::Healthy, serving: true, instances, failure: None };
        let action = world.reports(vec![(target, report)]);
        world.ok(action);
    };
    let both =
        vec![instance("shop", &new, 20_001, InstanceState::Serving), instance("web", &old, 20_000, InstanceState::Draining)];
    say(&mut world, 0, both);
    say(&mut world, 1, vec![instance("web", &old, 20_000, InstanceState::Serving)]);
    say(&mut world, 2, vec![instance("web", &old, 20_000, InstanceState::Unhealthy)]);
    let table = route_table(&world.tables, 9).unwrap();
    let routes: Vec<_> = table
        .services()
        .iter()
        .map(|(service, route)| (service.to_string(), route.releases.values().map(Vec::len).sum::<usize>()))
        .collect();
    assert_eq!(routes, [("shop/production/shop".to_owned(), 1), ("shop/production/web".to_owned(), 2)]);
}

#[test]
fn content_is_garbage_once_no_record_names_it() {
    let (mut world, file) = World::with_fleet(1, FILE);
    world.retain(SHORT);
    let first = world.deployed(1, &file);
    for number in 2..=6 {
        world.deployed(number, &file);
    }
    let artifact: Artifact = world.get(key(digest(&world, &first).hex().as_str()));
    let [output, bundle, garbage] = [b"output".as_slice(), b"bundle", b"garbage"].map(Digest::of);
    let log = Digest::of(b"log");
    let mut build: Build = world.tables.scan(&Scan::all(), 1).unwrap().remove(0);
    build.attempts[0].log = Some(log);
    world.tables.put(&build).unwrap();
    let mut seen: Observation = world.tables.scan(&Scan::all(), 1).unwrap().remove(0);
    seen.report.failure = Some(TargetFailure {
        service: None,
        reason: "it ended".into(),
        hint: "see its output".into(),
        exit: None,
        probe: None,
        output: String::new(),
        output_blob: Some(output),
    });
    world.tables.put(&seen).unwrap();
    world.tables.put(&Bundle { repository: name("shop"), number: 0, digest: bundle, size: ByteSize(1) }).unwrap();

    let stored = BTreeSet::from([artifact.digest, artifact.manifest, log, output, bundle, garbage]);
    assert_eq!(unnamed_content(&world.tables, stored.clone()).unwrap(), BTreeSet::from([garbage]));
    world.ok(delete(vec![artifact.digest]));
    assert!(unnamed_content(&world.tables, stored).unwrap().contains(&artifact.digest));
}
