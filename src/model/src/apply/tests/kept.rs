//! What is kept: artifacts that anything could go back to, and routes to whatever answers.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    apply::testing::*,
    build::Build,
    command::*,
    digest::Digest,
    fleet::observation::{InstanceObserved, InstanceState, Observation, Progress, Report, TargetFailure},
    ids::ReleaseId,
    pipeline::{Pipeline, Retention},
    pipeline_file::PipelineFile,
    release::{
        Artifact, Release, release_key,
        retention::{expired_artifacts, unnamed_content},
    },
    repository::Bundle,
    rollout::Purpose,
    routing::derive::route_table,
    tables::{ReadTables, Scan, Tables, key},
    units::{ByteSize, Millis, Timestamp},
};

fn digest(world: &World, release: &ReleaseId) -> Digest {
    world.get::<Release>(release_key(release)).artifact
}

fn delete(digests: Vec<Digest>) -> ArtifactAction {
    ArtifactAction::Delete { digests }
}

#[test]
fn what_could_be_gone_back_to_is_never_deleted() {
    let (mut world, file) = World::with_fleet(2, FILE);
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
        let quarantined = crate::rollout::Quarantined { release, rollout, why: "bad".into(), at: Timestamp(0) };
        deployment.quarantined.push(quarantined);
    }
    world.tables.put(&deployment).unwrap();
    assert_eq!(deployment.former(Some(&waiting)), Some(&releases[2]));
    let former = digest(&world, &releases[2]);
    assert_eq!(world.refused(delete(vec![former])), "needed");
}

#[test]
fn retention_names_only_old_artifacts_that_nothing_younger_has() {
    let (mut world, file) = World::with_fleet(1, FILE);
    let first = world.release(1, &file);
    for number in 2..=5 {
        world.release(number, &file);
    }
    let mut pipeline: Pipeline = world.get(key("shop"));
    pipeline.retention = Retention { releases: 3, age: Millis(1000) };
    let later = Timestamp(world.now.0 + 1_000_000);
    let expired = expired_artifacts(&world.tables, &pipeline, later, 10).unwrap();
    assert_eq!(expired.len(), 2);
    assert!(expired_artifacts(&world.tables, &pipeline, later, 1).unwrap().len() == 1);
    // The same bytes again, in a young release that is not among the newest.
    let release: Release = world.get(release_key(&first));
    let young = Release { id: ReleaseId { number: 3, ..first.clone() }, created_at: later, ..release };
    world.tables.put(&young).unwrap();
    let left = expired_artifacts(&world.tables, &pipeline, later, 10).unwrap();
    assert!(!left.contains(&young.artifact), "{left:?}");
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
