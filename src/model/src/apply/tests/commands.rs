//! What holds for every command: answers to retries, epochs, time, the chain of events, `If-Match`.

use crate::{
    actor_failure::{ActorFailure, actor_failure_key},
    apply::testing::*,
    build::Build,
    cluster::{ANSWER_AGE_MAX, Answer, Cluster, Epoch},
    command::*,
    digest::Digest,
    event::{Event, EventKind, Subject},
    pipeline::{Retention, Source},
    principal::Role,
    repository::{Ref, RefUpdate},
    tables::{Key, ReadTables, key},
    units::{ByteSize, Timestamp},
};

#[test]
fn retried_command_gets_the_first_answer_for_a_day() {
    let (mut world, _) = World::with_fleet(1, FILE);
    let mut command = world.command(request(1));
    command.idempotency_key = Some("k".into());
    let first = world.propose(command.clone()).unwrap();
    let again = world.propose(command.clone()).unwrap();
    assert_eq!((again.outcome.replayed, again.outcome.subject, again.events.len()), (true, first.outcome.subject, 0));
    let mut another = Command { idempotency_key: Some("k".into()), ..world.command(request(2)) };
    another.fingerprint = Some(Digest::of(b"another request"));
    assert_eq!(world.propose(another).unwrap_err().code(), "key_reused");
    world.now.0 += ANSWER_AGE_MAX.0 + 1;
    let mut other = world.command(request(2));
    other.idempotency_key = Some("l".into());
    world.propose(other).unwrap();
    assert!(world.tables.get::<Answer>(&key("k")).unwrap().is_none());
    assert!(!world.propose(command).unwrap().outcome.replayed, "it is carried out anew");
    assert_eq!(world.get::<Cluster>(Key::all()).answer_count, 2);
}

#[test]
fn rejected_command_changes_nothing_and_is_not_remembered() {
    let mut world = World::new();
    let mut command = world.command(request(1));
    command.idempotency_key = Some("k".into());
    let before: Cluster = world.get(Key::all());
    assert_eq!(world.propose(command.clone()).unwrap_err().code(), "not_found");
    assert_eq!(world.get::<Cluster>(Key::all()), before);
    for bad in ["", "a\0b", &"x".repeat(201)] {
        command.idempotency_key = Some(bad.into());
        assert_eq!(world.propose(command.clone()).unwrap_err().code(), "invalid");
    }
}

#[test]
fn command_of_another_epoch_is_refused_and_epochs_only_grow() {
    let (mut world, _) = World::with_fleet(1, FILE);
    world.ok(ClusterAction::BeginEpoch { epoch: Epoch(5), server: 2 });
    assert_eq!(world.refused(ClusterAction::BeginEpoch { epoch: Epoch(5), server: 3 }), "stale_epoch");
    for epoch in [4, 6] {
        let mut command = world.command(request(1));
        command.epoch = Some(Epoch(epoch));
        assert_eq!(world.propose(command).unwrap_err().code(), "stale_epoch");
    }
    let mut command = world.command(request(1));
    command.epoch = Some(Epoch(5));
    world.propose(command).unwrap();
}

#[test]
fn failing_actor_is_recorded_until_it_recovers() {
    let (mut world, _) = World::with_fleet(1, FILE);
    let subject = Subject::Pipeline(name("shop"));
    let mark = |why: Option<String>| ClusterAction::RecordActorFailure { subject: subject.clone(), why };
    world.ok(mark(Some("it fails".into())));
    let first: ActorFailure = world.get(actor_failure_key(&subject));
    world.now = Timestamp(world.now.0 + 1000);
    world.ok(mark(Some("x".repeat(10_000))));
    let trouble: ActorFailure = world.get(actor_failure_key(&subject));
    assert!(trouble.since == first.since && trouble.why.len() <= 500, "{trouble:?}");
    assert!(trouble.why.contains("xxx"));
    world.ok(mark(None));
    world.ok(mark(None));
    assert_eq!(world.tables.get::<ActorFailure>(&actor_failure_key(&subject)).unwrap(), None);
    let events: Vec<&Event> = world.applied.iter().flat_map(|applied| &applied.events).collect();
    let kinds: Vec<EventKind> = events.iter().rev().take(3).map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::ActorRecovered, EventKind::ActorFailed, EventKind::ActorFailed]);
}

#[test]
fn events_are_one_chain_in_time_that_never_runs_backwards() {
    let (mut world, file) = World::with_fleet(2, FILE);
    world.release(1, &file);
    world.now = Timestamp(5);
    world.request(2);
    let events: Vec<&Event> = world.applied.iter().flat_map(|applied| &applied.events).collect();
    let mut head = Digest([0; 32]);
    let mut at = Timestamp(0);
    for event in &events {
        assert!(event.previous == head && event.at >= at, "{event:?}");
        (head, at) = (event.chain_hash(), event.at);
    }
    let cluster: Cluster = world.get(Key::all());
    assert_eq!((cluster.event_head, cluster.event_count), (head, events.len() as u64));
}

#[test]
fn if_match_refuses_what_changed_so_a_promotion_counts_once() {
    let (mut world, file) = World::with_fleet(3, FILE);
    let release = world.release(1, &file);
    let id = world.start(&release, crate::rollout::Purpose::Deploy).unwrap();
    world.change_wave(id);
    let mut command = world.command(RolloutAction::Promote { rollout: id, why: "I looked".into() });
    command.if_revision = Some(1);
    assert_eq!(world.propose(command.clone()).unwrap_err().code(), "changed");
    command.if_revision = Some(world.rollout(id).revision);
    world.propose(command).unwrap();
    let verdict = world.rollout(id).verdicts.remove(0);
    assert_eq!((verdict.by.role, verdict.wave), (Role::Developer, 0));
}

#[test]
fn if_match_is_never_ignored() {
    let (mut world, _) = World::with_fleet(1, FILE);
    let guarded = |world: &mut World, action: Action, revision| {
        let command = Command { if_revision: Some(revision), ..world.command(action) };
        world.propose(command).map_err(|rejection| rejection.code())
    };
    let action = RepositoryAction::Create { name: name("site"), default_branch: "main".into() };
    assert_eq!(guarded(&mut world, action.into(), 1).unwrap_err(), "invalid", "what does not exist has no revision");
    assert!(world.tables.get::<crate::repository::Repository>(&key("site")).unwrap().is_none());

    let build = world.request(1);
    world.ok(BuildAction::Cancel { build });
    let retry = BuildAction::Retry { build };
    assert_eq!(guarded(&mut world, retry.clone().into(), 1).unwrap_err(), "changed");
    let now = world.get::<Build>(key(build.0)).revision;
    guarded(&mut world, retry.into(), now).unwrap();
}

fn create_repository(world: &mut World) {
    world.ok(RepositoryAction::Create { name: name("code"), default_branch: "main".into() });
}

fn push(updates: &[(&str, Option<u8>, Option<u8>)]) -> RepositoryAction {
    let update = |(name, old, new): &(&str, Option<u8>, Option<u8>)| RefUpdate {
        name: (*name).to_owned(),
        old: old.map(commit),
        new: new.map(commit),
    };
    let bundle = Some((Digest::of(b"bundle"), ByteSize(10)));
    RepositoryAction::Push { repository: name("code"), updates: updates.iter().map(update).collect(), bundle }
}

#[test]
fn refs_move_by_compare_and_swap_all_or_none() {
    let mut world = World::new();
    assert_eq!(world.refused(push(&[("refs/heads/main", None, Some(1))])), "not_found");
    create_repository(&mut world);
    assert_eq!(world.refused(RepositoryAction::Create { name: name("code"), default_branch: "main".into() }), "exists");
    world.ok(push(&[("refs/heads/main", None, Some(1))]));
    assert_eq!(world.refused(push(&[("refs/heads/main", None, Some(2))])), "ref_moved");
    assert_eq!(world.refused(push(&[("refs/heads/b", None, Some(2)), ("refs/heads/main", Some(9), Some(2))])), "ref_moved");
    assert!(world.tables.get::<Ref>(&key("code").then("refs/heads/b")).unwrap().is_none(), "none of them moved");
    for bad in ["heads/main", "refs/heads", "refs/heads/a..b", "refs/heads/.a", "refs/heads/a b", "refs/heads/a.lock"] {
        assert_eq!(world.refused(push(&[(bad, None, Some(1))])), "invalid", "{bad}");
    }
    assert_eq!(world.refused(push(&[])), "invalid");
}

#[test]
fn ref_is_refused_where_its_name_is_a_folder_of_refs() {
    let mut world = World::new();
    create_repository(&mut world);
    world.ok(push(&[("refs/heads/a/b", None, Some(1))]));
    assert_eq!(world.refused(push(&[("refs/heads/a", None, Some(1))])), "invalid");
    assert_eq!(world.refused(push(&[("refs/heads/a/b/c", None, Some(1))])), "invalid");
    world.ok(push(&[("refs/heads/ab", None, Some(1))]));
    world.ok(push(&[("refs/heads/a", None, Some(1)), ("refs/heads/a/b", Some(1), None)]));
}

fn create(concurrency: u32, source: Source, file: &str, releases: u32) -> PipelineAction {
    let retention = Retention { releases, ..Default::default() };
    PipelineAction::Create { name: name("p"), source, file: file.into(), concurrency, supersede: true, retention }
}

#[test]
fn pipeline_with_an_unusable_setting_is_refused() {
    let mut world = World::new();
    let remote = || Source::Remote("https://git.example/p".into());
    assert_eq!(world.refused(create(0, remote(), "swell.toml", 10)), "invalid");
    assert_eq!(world.refused(create(65, remote(), "swell.toml", 10)), "invalid");
    assert_eq!(world.refused(create(1, remote(), "../swell.toml", 10)), "invalid");
    assert_eq!(world.refused(create(1, remote(), "swell.toml", 2)), "invalid");
    assert_eq!(world.refused(create(1, Source::Remote("--upload-pack=x".into()), "swell.toml", 10)), "invalid");
    assert_eq!(world.refused(create(1, Source::Hosted(name("none")), "swell.toml", 10)), "not_found");
    world.ok(create(1, remote(), "swell.toml", 10));
    assert_eq!(world.refused(create(1, remote(), "swell.toml", 10)), "exists");
    world.ok(PipelineAction::Remove { name: name("p") });
    assert_eq!(world.refused(PipelineAction::Remove { name: name("p") }), "not_found");
}

#[test]
fn pipeline_that_is_deployed_stays_and_a_new_one_of_its_name_continues_its_numbers() {
    let (mut world, file) = World::with_fleet(1, FILE);
    let build = world.request(1);
    assert_eq!(world.refused(PipelineAction::Remove { name: name("shop") }), "needed");
    world.ok(BuildAction::Cancel { build });
    let first = world.release(2, &file);
    world.ok(EnvironmentAction::Freeze { name: name("production"), why: "holiday".into() });
    let waits = world.start(&first, crate::rollout::Purpose::Deploy).unwrap();
    assert_eq!(world.refused(PipelineAction::Remove { name: name("shop") }), "needed", "a rollout of it waits");
    world.ok(RolloutAction::Abort { rollout: waits, why: "never mind".into() });
    world.ok(PipelineAction::Remove { name: name("shop") });
    let mut again = create(1, Source::Remote("https://git.example/other".into()), "swell.toml", 10);
    if let PipelineAction::Create { name: new, .. } = &mut again {
        *new = name("shop");
    }
    world.ok(again);
    let second = world.release(2, &file);
    assert_eq!(second.number, first.number + 1, "the release of before is another one");
    assert_eq!(Subject::Release(second).to_string(), "release/shop@2");
}
