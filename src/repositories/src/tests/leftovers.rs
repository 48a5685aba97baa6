//! What pushes that end badly leave behind: nothing. And what they may take of the disk.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use tokio::time::Instant;

use crate::tests::*;
use swell_system::disk_space::Room;

const SOON: Duration = Duration::from_secs(20);

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

/// What there is of pushes that were not accepted.
fn halves(world: &World) -> usize {
    let objects = std::fs::read_dir(world.path("hosted/shop.git/objects"));
    let names = objects.into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with("tmp_objdir-")).count()
}

fn ada() -> Access {
    Access::Write { pusher: "ada".to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_that_breaks_off_leaves_nothing_on_the_disk() {
    let world = World::new().await;
    let (sender, received) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(4);
    let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(received));
    let request = Request::post("/").header("content-type", "application/x-git-receive-pack-request").body(body).unwrap();
    let update = format!("{} {} refs/heads/main\0report-status\n", "0".repeat(40), "1".repeat(40));
    // A pack of version 2 that promises 1000 objects, and the beginning of the first.
    let begun = format!("{:04x}{update}0000PACK\0\0\0\x02\0\0\x03\u{68}\u{31}", update.len() + 4);
    sender.send(Ok(Frame::data(begun.into()))).await.unwrap();
    let response = world.hosted.serve(&"shop".parse().unwrap(), "git-receive-pack", ada(), request).await;
    until("git should receive it", || halves(&world) == 1).await;

    drop(response);
    until("git should remove what it received", || halves(&world) == 0).await;
    until("git should end", || super::aborted::processes_in(world.folder.path()).is_empty()).await;
    drop(sender);
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_after_a_kill_removes_leftovers() {
    let world = World::new().await;
    let work = world.work_tree("work").await;
    ok(&work, &["push", "-q", "swell", "main"]).await;
    let cache = world.path("hosted/shop.git");
    let left = [
        "objects/tmp_objdir-incoming-x/pack/tmp_pack_a",
        "objects/pack/tmp_pack_b",
        "objects/pack/.tmp-7-pack-c",
        "refs/heads/main.lock",
    ];
    for path in left.map(|path| cache.join(path)) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
    let sink = Arc::clone(&world.cluster) as Arc<dyn PushSink>;
    HostedRepositories::open(world.path("hosted"), sink).await.unwrap();
    let there = left.map(|path| cache.join(path).exists());
    assert_eq!((there, halves(&world)), ([false; 4], 0));
    ok(world.folder.path(), &["clone", "-q", &world.url("shop"), "copy"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_left_by_a_killed_git_is_removed_without_a_rebuild() {
    let world = World::new().await;
    let work = world.work_tree("work").await;
    ok(&work, &["push", "-q", "swell", "main"]).await;
    let marker = world.path("hosted/shop.git/marker");
    std::fs::write(&marker, "x").unwrap();
    std::fs::write(world.path("hosted/shop.git/refs/heads/main.lock"), "").unwrap();
    // Agreed, and git could not say so in its refs.
    let tip = commit(&work, "second", "x").await;
    git(&work, &["push", "-q", "swell", "main"]).await;
    assert_eq!(world.refs()["refs/heads/main"], tip);
    let listed = ok(&work, &["ls-remote", "swell", "refs/heads/main"]).await;
    assert!(listed.starts_with(tip.as_str()), "{listed}");
    assert!(marker.exists(), "the cache was thrown away");
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_removes_what_a_killed_fetch_left() {
    let world = World::new().await;
    let work = world.work_tree("work").await;
    ok(&work, &["push", "-q", "swell", "main"]).await;
    let mirror = Mirrors::open(world.path("mirrors")).await.unwrap().of(&world.url("shop"), None).await.unwrap();
    mirror.fetch().await.unwrap();
    let folder = std::fs::read_dir(world.path("mirrors")).unwrap().flatten().map(|entry| entry.path());
    let git_dir = folder.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "git")).unwrap();
    let half = git_dir.join("objects/pack/tmp_pack_x");
    std::fs::write(&half, "x").unwrap();
    mirror.fetch().await.unwrap();
    assert!(!half.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn push_without_disk_space_is_refused() {
    fn room(available: u64) -> std::io::Result<Room> {
        Ok(Room { capacity: 1 << 40, free: available, available })
    }
    let full = World::with(|hosted| hosted.room = |_| room(1 << 20)).await;
    let work = full.work_tree("work").await;
    let error = fails(&work, &["push", "swell", "main"]).await;
    assert!(error.contains("free some space there"), "{error}");

    let small = World::with(|hosted| hosted.room = |_| room(3 << 20)).await;
    let work = small.work_tree("work").await;
    ok(&work, &["push", "-q", "swell", "main"]).await;
    std::fs::write(work.join("noise"), incompressible(2 << 20)).unwrap();
    commit(&work, "more", "text").await;
    let error = fails(&work, &["push", "swell", "main"]).await;
    assert!(error.contains("exceeds maximum allowed size"), "{error}");
    until("nothing of it is kept", || halves(&small) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_before_a_large_push_does_not_check_the_cache() {
    let world = World::new().await;
    let work = world.work_tree("work").await;
    ok(&work, &["push", "-q", "swell", "main"]).await;
    let suspect = world.hosted.cache(&"shop".parse().unwrap()).suspect;
    let request =
        Request::post("/").header("content-type", "application/x-git-receive-pack-request").header("content-length", "4");
    let request = request.body(Full::new(Bytes::from_static(b"0000"))).unwrap();
    let response = world.hosted.serve(&"shop".parse().unwrap(), "git-receive-pack", ada(), request).await;
    assert_eq!(response.status(), hyper::StatusCode::OK);
    response.into_body().collect().await.unwrap();
    // One is the table's, one is ours: whoever attended to a push has gone.
    until("git should end", || Arc::strong_count(&suspect) == 2).await;
    assert!(!suspect.load(std::sync::atomic::Ordering::Relaxed), "the next request would check the whole repository");
}

/// Bytes that no compression makes smaller, the same in each run.
fn incompressible(size: usize) -> Vec<u8> {
    let blocks = (0_u64..).flat_map(|block| Digest::of(&block.to_le_bytes()).0);
    blocks.take(size).collect()
}
