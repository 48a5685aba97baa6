//! Disks that fail: damage is refused by name, a full disk stops the server and nothing is lost.

use std::fs;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::*;

/// Where the write-ahead log of the database is.
pub fn write_ahead_log(dir: &Path) -> std::path::PathBuf {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_or_cut_log_is_refused_by_folder_name() {
    let dir = TempDir::new().unwrap();
    let node = started(dir.path()).await;
    for name in ["one", "two", "three"] {
        node.propose(create(name)).await.unwrap();
    }
    node.shutdown().await.unwrap();
    drop(node);
    let path = write_ahead_log(&dir.path().join("raft"));
    let good = fs::read(&path).unwrap();
    let folder = dir.path().join("raft").display().to_string();

    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&path, &bad).unwrap();
    let flipped = refused(dir.path()).await.to_string();
    assert!(flipped.contains(&folder) && flipped.contains("damaged"), "{flipped}");

    fs::write(&path, &good).unwrap();
    let node = started(dir.path()).await;
    assert_eq!(names(&node.view()).len(), 3, "refusing repaired nothing");
    node.propose(create("four")).await.unwrap();
    node.shutdown().await.unwrap();
    drop(node);
    let path = write_ahead_log(&dir.path().join("raft"));
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    let cut = refused(dir.path()).await.to_string();
    assert!(cut.contains(&folder) && cut.contains("acknowledged entries are missing"), "{cut}");
    assert!(cut.contains("move this server's data folder aside"), "it never advises to delete data: {cut}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_that_lost_its_tail_catches_up_from_the_log() {
    let dir = TempDir::new().unwrap();
    let node = started(dir.path()).await;
    for name in ["one", "three", "two"] {
        node.propose(create(name)).await.unwrap();
    }
    node.shutdown().await.unwrap();
    drop(node);
    // As after a power loss: what was not synced is gone.
    let path = write_ahead_log(&dir.path().join("state/000001"));
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    let node = started(dir.path()).await;
    assert_eq!(names(&node.linearizable_view().await.unwrap()), ["one", "three", "two"]);
    node.shutdown().await.unwrap();
}

/// A small disk of its own.
struct Disk(TempDir);

impl Disk {
    fn new(mebibytes: u32) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let size = format!("size={mebibytes}m");
        match mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str())) {
            Ok(()) => Some(Self(dir)),
            Err(error) => {
                eprintln!("SKIPPED: a full disk cannot be tried without root: mount: {error}");
                None
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

/// Fills the disk with a file, but for some space.
fn fill(path: &Path, mebibytes_left: u64) {
    let mut file = fs::File::create(path).unwrap();
    let mut size = 0;
    while std::io::Write::write_all(&mut file, &[1; 1 << 20]).is_ok() {
        size += 1;
    }
    file.set_len((size - mebibytes_left) << 20).unwrap();
}

/// A command that is rejected, but takes up space in the log.
fn large() -> Proposal {
    let default_branch = "x".repeat(400_000);
    let action = RepositoryAction::Create { name: "kept-0".parse().unwrap(), default_branch };
    Proposal::new(action, Principal::new(Role::Developer, "ada"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_stops_the_server_until_there_is_space() {
    let Some(disk) = Disk::new(256) else { return };
    let dir = disk.0.path().join("data");
    let node = started(&dir).await;
    let mut kept = Vec::new();
    let filler = disk.0.path().join("filler");
    fill(&filler, 8);
    let why = loop {
        let name = format!("kept-{}", kept.len());
        match node.propose(create(&name)).await {
            Ok(_) => kept.push(name),
            Err(ProposeError::Stopped(why)) => break why,
            Err(error) => panic!("{error}"),
        }
        match node.propose(large()).await {
            Err(ProposeError::Rejected(_)) => assert!(kept.len() < 1000, "the disk does not fill up"),
            Err(ProposeError::Stopped(why)) => break why,
            other => panic!("{other:?}"),
        }
    };
    println!("after {} commands: {why}", kept.len());
    assert!(why.contains("disk is full") && why.contains("free some space"), "{why}");
    assert!(is_stopped(&node.propose(create("late")).await));
    let told = tokio::time::timeout(PATIENCE, node.stopped()).await;
    assert_eq!(told.as_deref(), Ok(why.as_str()), "whoever runs the process hears of it, and can end it");
    assert_eq!(node.status().stopped, Some(why));
    eventually("it knows that it does not lead", || !node.leadership().borrow().is_leader).await;
    assert!(node.shutdown().await.is_err(), "it says that it had stopped");
    drop(node);

    fs::remove_file(filler).unwrap();
    let node = started(&dir).await;
    let there = names(&node.linearizable_view().await.unwrap());
    for name in &kept {
        assert!(there.contains(name), "{name} was acknowledged and is lost");
    }
    node.propose(create("onward")).await.unwrap();
    node.shutdown().await.unwrap();
}
