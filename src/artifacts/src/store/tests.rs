//! The embedded store as its users see it: what was acknowledged is there, nothing half-written ever is.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::TryStreamExt;
use proptest::prelude::*;

use super::*;
use crate::testing;
use swell_model::units::BasisPoints;

async fn store(dir: &Path) -> Embedded {
    Embedded::open(dir, EmbeddedOptions::default()).await.unwrap()
}

/// Objects may be deleted at once.
async fn unleased(dir: &Path) -> Embedded {
    Embedded::open(dir, EmbeddedOptions { lease: Millis(0), ..EmbeddedOptions::default() }).await.unwrap()
}

async fn read(store: &dyn ContentStore, digest: Digest, range: Range<u64>) -> Result<Vec<u8>> {
    let stream = store.get_range(digest, range).await?;
    Ok(stream.map_ok(|chunk| chunk.to_vec()).try_concat().await.unwrap())
}

fn broken_after(bytes: Vec<u8>) -> ByteStream {
    let end = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    futures::stream::iter([Ok(Bytes::from(bytes)), Err(end)]).boxed()
}

fn age(path: &Path, by: Duration) {
    fs::File::open(path).unwrap().set_modified(SystemTime::now() - by).unwrap();
}

fn files_in(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn object_survives_restart() {
    let dir = tempfile::tempdir().unwrap();
    let content = testing::noise(3_000_000);
    let digest = Digest::of(&content);
    let chunks: Vec<_> = content.chunks(70_001).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    let stored = store(dir.path()).await.put(futures::stream::iter(chunks).boxed(), Some(digest)).await.unwrap();
    assert_eq!(stored, Stored { digest, size: 3_000_000 });

    let again: Arc<dyn ContentStore> = Arc::new(store(dir.path()).await);
    assert_eq!(again.stat(digest).await.unwrap(), Some(stored));
    assert_eq!(read(&*again, digest, 0..3_000_000).await.unwrap(), content);
    assert_eq!(read(&*again, digest, 999_999..1_000_003).await.unwrap(), content[999_999..1_000_003]);
    assert_eq!(read(&*again, digest, 7..7).await.unwrap(), b"");
    assert!(matches!(read(&*again, digest, 0..3_000_001).await, Err(StoreError::Range { .. })));
    assert!(matches!(read(&*again, Digest::of(b"?"), 0..1).await, Err(StoreError::NotFound(_))));
    assert_eq!(again.list(None, 10).await.unwrap(), [stored]);
    let usage = again.usage().await.unwrap();
    assert_eq!((usage.bytes, usage.objects), (3_000_000, 1));
    assert_eq!(again.scrub(digest).await.unwrap(), Scrubbed::Intact);
    assert_eq!(read_small(&*again, digest, 3_000_000).await.unwrap(), content);
    assert!(matches!(read_small(&*again, digest, 10).await, Err(StoreError::TooLarge(10))));
}

#[tokio::test]
async fn incomplete_object_is_never_visible() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let wrong = store.put(stream_of("other"), Some(Digest::of(b"this"))).await.unwrap_err();
    assert!(matches!(wrong, StoreError::Mismatch { .. }) && wrong.retryable());
    let broken = store.put(broken_after(vec![1; 3 << 20]), None).await.unwrap_err();
    assert!(matches!(broken, StoreError::Incoming(_)));
    assert_eq!(store.list(None, 10).await.unwrap(), []);
    assert_eq!(store.usage().await.unwrap().bytes, 0);
    // Removing them happens aside; a restart has it done in any case.
    drop(store);
    self::store(dir.path()).await;
    assert_eq!(files_in(&dir.path().join("partial")), 0);
}

#[tokio::test]
async fn silent_sender_times_out() {
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { stall: Millis(20), ..EmbeddedOptions::default() };
    let silent = Embedded::open(dir.path(), options).await.unwrap().put(futures::stream::pending().boxed(), None).await;
    assert!(matches!(silent, Err(StoreError::Stalled(_))));
}

#[tokio::test]
async fn leftovers_of_a_crash_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    drop(store(dir.path()).await);
    let partial = dir.path().join("partial");
    for name in [".put-123-0", "old", "young"] {
        fs::write(partial.join(name), "half").unwrap();
    }
    age(&partial.join("old"), 25 * HOUR);
    let store = store(dir.path()).await;
    assert_eq!(store.list(None, 10).await.unwrap(), []);
    assert_eq!(store.upload_offset("young".parse().unwrap()).await.unwrap(), 4);
    assert_eq!(store.upload_offset("old".parse().unwrap()).await.unwrap(), 0);
    assert_eq!(files_in(&partial), 1);
    // Between the rename and the answer: the object is there, and putting it again is fine.
    fs::write(dir.path().join("objects").join(&Digest::of(b"x").hex()[..2]).join(&Digest::of(b"x").hex()[2..]), "x").unwrap();
    assert_eq!(store.put(stream_of("x"), Some(Digest::of(b"x"))).await.unwrap().size, 1);
    assert_eq!(store.list(None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn concurrent_puts_of_same_content_store_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let content = testing::noise(1 << 20);
    let puts = (0..8).map(|_| store.put(stream_of(content.clone()), None));
    for stored in futures::future::join_all(puts).await {
        assert_eq!(stored.unwrap().digest, Digest::of(&content));
    }
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.bytes, usage.objects), (1 << 20, 1));
}

#[tokio::test]
async fn upload_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let content = testing::noise(2_500_000);
    let digest = Digest::of(&content);
    let upload: UploadId = digest.hex().parse().unwrap();
    let first = store(dir.path()).await;
    assert_eq!(first.upload_offset(upload.clone()).await.unwrap(), 0);
    assert!(matches!(first.upload_finish(upload.clone(), digest).await, Err(StoreError::UnknownUpload(_))));
    assert!(first.upload_append(upload.clone(), 0, broken_after(content[..1_200_000].to_vec())).await.is_err());
    drop(first);

    let store = store(dir.path()).await;
    let have = store.upload_offset(upload.clone()).await.unwrap();
    assert_eq!(have, 1_200_000);
    let error = store.upload_append(upload.clone(), 5, stream_of("x")).await.unwrap_err();
    assert!(matches!(error, StoreError::Offset { have: 1_200_000, given: 5, .. }));
    let rest = stream_of(content[have as usize..].to_vec());
    assert_eq!(store.upload_append(upload.clone(), have, rest).await.unwrap(), 2_500_000);
    let stored = store.upload_finish(upload.clone(), digest).await.unwrap();
    assert_eq!(stored, Stored { digest, size: 2_500_000 });
    assert_eq!(store.upload_finish(upload.clone(), digest).await.unwrap(), stored, "the answer may have been lost");
    assert_eq!(store.scrub(digest).await.unwrap(), Scrubbed::Intact);

    store.upload_append(upload.clone(), 0, stream_of("wrong")).await.unwrap();
    assert!(matches!(store.upload_finish(upload.clone(), Digest::of(b"right")).await, Err(StoreError::Mismatch { .. })));
    assert_eq!(store.upload_offset(upload.clone()).await.unwrap(), 0);
    store.upload_append(upload.clone(), 0, stream_of("no more")).await.unwrap();
    store.upload_abort(upload.clone()).await.unwrap();
    assert_eq!(store.upload_offset(upload).await.unwrap(), 0);
}

#[tokio::test]
async fn upload_has_one_sender_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let upload: UploadId = "u".parse().unwrap();
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(1);
    let slow = {
        let (store, upload) = (store.clone(), upload.clone());
        let content = tokio_stream::wrappers::ReceiverStream::new(receiver).boxed();
        tokio::spawn(async move { store.upload_append(upload, 0, content).await })
    };
    // Once the first chunk has left the channel, the first sender holds the upload.
    sender.send(Ok(Bytes::from_static(b"a"))).await.unwrap();
    sender.send(Ok(Bytes::from_static(b"b"))).await.unwrap();
    let second = store.upload_append(upload.clone(), 0, stream_of("x")).await.unwrap_err();
    assert!(matches!(second, StoreError::Busy(_)) && second.retryable());
    assert!(matches!(store.upload_finish(upload.clone(), Digest::of(b"ab")).await, Err(StoreError::Busy(_))));
    drop(sender);
    assert_eq!(slow.await.unwrap().unwrap(), 2);
    store.upload_finish(upload, Digest::of(b"ab")).await.unwrap();
}

#[test]
fn upload_name_is_checked() {
    for bad in ["", "..", "a/b", ".put-1-1", "A", &"x".repeat(101)] {
        assert!(bad.parse::<UploadId>().is_err(), "{bad}");
    }
}

#[tokio::test]
async fn lease_wins_over_deletion() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let digest = store.put(stream_of("artifact"), None).await.unwrap().digest;
    let object = dir.path().join("objects").join(&digest.hex()[..2]).join(&digest.hex()[2..]);
    assert!(matches!(store.delete(digest).await, Err(StoreError::Leased { .. })), "it was put just now");
    age(&object, 2 * HOUR);
    assert!(store.lease(digest).await.unwrap());
    assert!(matches!(store.delete(digest).await, Err(StoreError::Leased { .. })), "it was leased just now");

    age(&object, 2 * HOUR);
    assert!(store.delete(digest).await.unwrap());
    assert_eq!(store.stat(digest).await.unwrap(), None);
    assert_eq!(store.usage().await.unwrap().objects, 0);
    assert!(!store.delete(digest).await.unwrap());
    assert_eq!(store.sweep().await.unwrap(), 0);
    assert!(store.lease(digest).await.unwrap(), "within the hour it can be had back");
    assert_eq!(read(&store, digest, 0..8).await.unwrap(), b"artifact");
    assert_eq!(store.usage().await.unwrap().bytes, 8);

    age(&object, 2 * HOUR);
    assert!(store.delete(digest).await.unwrap());
    age(&dir.path().join("deleted").join(digest.hex()), 2 * HOUR);
    assert_eq!(store.sweep().await.unwrap(), 1);
    assert!(!store.lease(digest).await.unwrap());
    store.put(stream_of("artifact"), Some(digest)).await.unwrap();
    assert_eq!(read(&store, digest, 0..8).await.unwrap(), b"artifact");
}

#[tokio::test]
async fn reader_finishes_deleted_object() {
    let dir = tempfile::tempdir().unwrap();
    let store = unleased(dir.path()).await;
    let content = testing::noise(2_000_000);
    let digest = store.put(stream_of(content.clone()), None).await.unwrap().digest;
    let stream = store.get_range(digest, 0..2_000_000).await.unwrap();
    assert!(store.delete(digest).await.unwrap());
    assert_eq!(stream.map_ok(|chunk| chunk.to_vec()).try_concat().await.unwrap(), content);
}

#[tokio::test]
async fn damaged_object_is_found_and_healed() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let digest = store.put(stream_of("good"), None).await.unwrap().digest;
    let object = dir.path().join("objects").join(&digest.hex()[..2]).join(&digest.hex()[2..]);
    fs::write(&object, "evil").unwrap();
    assert_eq!(store.scrub(digest).await.unwrap(), Scrubbed::Corrupt { found: Digest::of(b"evil") });
    assert_eq!(store.stat(digest).await.unwrap(), None);
    assert_eq!(fs::read(dir.path().join("corrupt").join(digest.hex())).unwrap(), b"evil");
    assert_eq!(store.scrub(digest).await.unwrap(), Scrubbed::Missing);
    store.put(stream_of("good"), Some(digest)).await.unwrap();
    fs::write(&object, "rotten").unwrap();
    store.put(stream_of("good"), Some(digest)).await.unwrap();
    assert_eq!(store.scrub(digest).await.unwrap(), Scrubbed::Intact);
}

#[tokio::test]
async fn pages_list_each_object_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let mut expected = Vec::new();
    for number in 0..40u8 {
        expected.push(store.put(stream_of(vec![number; 3]), None).await.unwrap());
    }
    expected.sort_by_key(|stored| stored.digest);
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(after, 7).await.unwrap();
        assert!(page.len() <= 7);
        let Some(last) = page.last() else { break };
        after = Some(last.digest);
        all.extend(page);
    }
    assert_eq!(all, expected);
}

#[tokio::test]
async fn water_marks_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    for (low, high, expected) in [(10_001, 10_001, Level::Normal), (0, 10_001, Level::Low), (0, 0, Level::High)] {
        let options =
            EmbeddedOptions { low_water: BasisPoints(low), high_water: BasisPoints(high), ..EmbeddedOptions::default() };
        let usage = Embedded::open(dir.path(), options).await.unwrap().usage().await.unwrap();
        assert_eq!(usage.level, expected);
        assert!(usage.free_bytes <= usage.capacity_bytes);
    }
}

#[tokio::test]
async fn full_disk_is_reported_and_leaves_nothing() {
    let Some((_disk, path)) = testing::small_disk(4 << 20) else { return };
    let store = store(&path.join("store")).await;
    let small = store.put(stream_of("small"), None).await.unwrap();
    let chunks: Vec<_> = testing::noise(8 << 20).chunks(1 << 18).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    let error = store.put(futures::stream::iter(chunks).boxed(), None).await.unwrap_err();
    let StoreError::NoSpace(error) = error else { panic!("{error}") };
    assert!(error.available < 4 << 20, "{error}");
    assert_eq!(store.list(None, 10).await.unwrap(), [small]);
    assert_eq!(read(&store, small.digest, 0..5).await.unwrap(), b"small");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Against a plain map: puts, deletions, leases and restarts in any order.
    #[test]
    fn behaves_like_a_map(steps in prop::collection::vec((0u8..5, 0u8..6), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = unleased(dir.path()).await;
            let (mut live, mut dead) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
            for (step, number) in steps {
                let content = vec![number; usize::from(number)];
                let digest = Digest::of(&content);
                match step {
                    0 | 1 => {
                        store.put(stream_of(content), None).await.unwrap();
                        dead.remove(&digest);
                        live.insert(digest);
                    }
                    2 => {
                        let was = live.remove(&digest);
                        assert_eq!(store.delete(digest).await.unwrap(), was);
                        if was {
                            dead.insert(digest);
                        }
                    }
                    3 => {
                        let revived = dead.remove(&digest);
                        assert_eq!(store.lease(digest).await.unwrap(), revived || live.contains(&digest));
                        if revived {
                            live.insert(digest);
                        }
                    }
                    _ => store = unleased(dir.path()).await,
                }
                let listed: Vec<_> = store.list(None, 100).await.unwrap().iter().map(|stored| stored.digest).collect();
                assert_eq!(listed, live.iter().copied().collect::<Vec<_>>());
                assert_eq!(store.usage().await.unwrap().objects, live.len() as u64);
            }
        });
    }
}
