//! What was acknowledged is there, in order, without holes; what is damaged is refused by name.

#![allow(clippy::unwrap_used)]

use std::{fs, sync::mpsc as std_mpsc, time::Duration};

use tempfile::TempDir;

use super::*;

fn entries(range: Range<u64>) -> Vec<(u64, Vec<u8>)> {
    range.map(|index| (index, vec![index as u8; 100])).collect()
}

async fn append(log: &RaftLog, range: Range<u64>) {
    let (done, told) = oneshot::channel();
    log.append(entries(range), Box::new(move |result| done.send(result).unwrap())).await.unwrap();
    told.await.unwrap().unwrap();
}

fn held(log: &RaftLog) -> Vec<u8> {
    log.read(0..u64::MAX, usize::MAX).unwrap().iter().map(|entry| entry[0]).collect()
}

#[tokio::test]
async fn reopened_log_keeps_what_was_appended_truncated_and_purged() {
    let dir = TempDir::new().unwrap();
    let log = RaftLog::open(dir.path()).unwrap();
    assert_eq!(log.bounds(), (0..0, None));
    append(&log, 0..9).await;
    log.save_vote(vec![7]).await.unwrap();
    assert_eq!(log.flushed().last(), Some(8));
    log.truncate(8).await.unwrap();
    assert_eq!(log.flushed().last(), Some(7), "what was removed may be written again otherwise");
    append(&log, 8..11).await;
    log.purge(2, vec![2]).await.unwrap();
    assert_eq!(held(&log), [3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(log.read(4..8, 150).unwrap().len(), 2, "as many as fit, and one more");
    assert_eq!(log.read(4..8, 0).unwrap().len(), 1, "one at least");
    assert!(log.append(entries(20..21), Box::new(|_| ())).await.is_err(), "never a hole");
    drop(log);
    let log = RaftLog::open(dir.path()).unwrap();
    assert_eq!((log.bounds(), log.vote()), ((3..11, Some(vec![2])), Some(vec![7])));
    assert_eq!(held(&log), [3, 4, 5, 6, 7, 8, 9, 10]);
    // As after a snapshot was installed that goes further than the log.
    log.purge(50, vec![50]).await.unwrap();
    assert_eq!((log.bounds(), log.flushed().last()), ((51..51, Some(vec![50])), Some(50)));
    append(&log, 51..53).await;
    drop(log);
    assert_eq!(held(&RaftLog::open(dir.path()).unwrap()), [51, 52]);
}

#[tokio::test]
async fn callbacks_keep_the_order_of_the_queue() {
    let dir = TempDir::new().unwrap();
    let log = RaftLog::open(dir.path()).unwrap();
    let (told, order) = std_mpsc::channel();
    for index in 0..500_u64 {
        let told = told.clone();
        log.append(entries(index..index + 1), Box::new(move |result| told.send((index, result.is_ok())).unwrap())).await.unwrap();
        assert_eq!(log.read(index..index + 1, 1).unwrap().len(), 1, "readable at once");
    }
    for index in 0..500 {
        assert_eq!(order.recv_timeout(Duration::from_secs(20)).unwrap(), (index, true));
    }
    assert_eq!(log.read(0..500, usize::MAX).unwrap().len(), 500);
}

/// The write-ahead log that holds the entries.
fn newest(dir: &Path, extension: &str) -> PathBuf {
    let files = files::entries(dir).unwrap();
    files.into_iter().rfind(|path| path.extension().is_some_and(|found| found == extension)).unwrap()
}

#[tokio::test]
async fn flipped_byte_in_the_log_is_refused_by_file_name() {
    let dir = TempDir::new().unwrap();
    let log = RaftLog::open(dir.path()).unwrap();
    for index in 0..20 {
        append(&log, index..index + 1).await;
    }
    drop(log);
    let path = newest(dir.path(), "log");
    let good = fs::read(&path).unwrap();
    for position in [40, good.len() / 2, good.len() - 20] {
        let mut bad = good.clone();
        bad[position] ^= 4;
        fs::write(&path, bad).unwrap();
        let error = RaftLog::open(dir.path()).err().unwrap();
        assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
        let (folder, file) = (dir.path().to_str().unwrap(), path.file_name().unwrap().to_str().unwrap());
        assert!(error.to_string().contains(folder) && error.to_string().contains(file), "{error}");
        fs::write(&path, &good).unwrap();
    }
    assert_eq!(held(&RaftLog::open(dir.path()).unwrap()).len(), 20, "refusing repaired nothing");
}

#[tokio::test]
async fn write_that_a_kill_cut_off_is_dropped() {
    let dir = TempDir::new().unwrap();
    let log = RaftLog::open(dir.path()).unwrap();
    append(&log, 0..1).await;
    append(&log, 1..2).await;
    drop(log);
    let path = newest(dir.path(), "log");
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..good.len() - 30]).unwrap();
    assert_eq!(held(&RaftLog::open(dir.path()).unwrap()), [0]);
}

#[tokio::test]
async fn damaged_table_file_of_the_log_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let log = RaftLog::open(dir.path()).unwrap();
    append(&log, 0..50).await;
    log.shared().db.flush_cf(log.shared().family(ENTRIES).unwrap()).unwrap();
    drop(log);
    let path = newest(dir.path(), "sst");
    let good = fs::read(&path).unwrap();
    let flipped: Vec<u8> = good.iter().enumerate().map(|(n, byte)| byte ^ u8::from(n == 30)).collect();
    for bad in [&flipped[..], &good[..good.len() / 2]] {
        fs::write(&path, bad).unwrap();
        let error = RaftLog::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains(path.file_name().unwrap().to_str().unwrap()) && error.contains("damaged"), "{error}");
    }
    fs::write(&path, good).unwrap();
    assert_eq!(held(&RaftLog::open(dir.path()).unwrap()).len(), 50);
}
