//! Pushes that lose their server or their pusher in the middle.

use crate::tests::*;

#[tokio::test(flavor = "multi_thread")]
async fn push_to_a_server_that_dies_can_be_repeated() {
    let world = World::new().await;
    let work = world.work_tree("work").await;
    // The hook without its server: what it meets when the server dies.
    let hook = world.path("hosted/.hooks/pre-receive");
    let status = Command::new(&hook).current_dir(&work).stderr(std::process::Stdio::null()).status().await.unwrap();
    assert!(!status.success(), "a push past the server is refused");
    let script = format!("exec 3</dev/null; GROUNDSWELL_PUSH=3 exec {} </dev/null", hook.display());
    let hook_ends = Command::new("sh").args(["-c", &script]).stderr(std::process::Stdio::null()).kill_on_drop(true).status();
    let status = tokio::time::timeout(std::time::Duration::from_secs(10), hook_ends).await.expect("the hook hangs").unwrap();
    assert!(!status.success());
    // Agreed, but git never heard of it: state wins, and the repeated push has nothing to do.
    ok(&work, &["push", "-q", "swell", "main"]).await;
    std::fs::remove_file(world.path("hosted/shop.git/refs/heads/main")).unwrap();
    let repeated = git(&work, &["push", "swell", "main"]).await;
    assert!(repeated.success && repeated.err.contains("up-to-date"), "{}", repeated.err);
}

/// Processes that were started for this world: their environment or command line names its folder.
pub(super) fn processes_in(folder: &Path) -> Vec<String> {
    let names_it = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).contains(folder.to_str().unwrap());
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let processes = processes.filter(|id| id.bytes().all(|b| b.is_ascii_digit()));
    let ours =
        |id: &String| ["environ", "cmdline"].iter().any(|file| std::fs::read(format!("/proc/{id}/{file}")).is_ok_and(names_it));
    processes.filter(ours).map(|id| std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pusher_who_leaves_ends_git_and_not_the_proposal() {
    let world = World::new().await;
    let work = world.work_tree("work").await;
    let tip: CommitId = ok(&work, &["rev-parse", "HEAD"]).await.parse().unwrap();
    let hold = Arc::new(Hold::default());
    *world.cluster.hold.lock().unwrap() = Some(Arc::clone(&hold));
    let mut push = Command::new("git");
    push.current_dir(&work).args(["push", "-q", "swell", "main"]).stderr(std::process::Stdio::null()).process_group(0);
    let mut push = push.spawn().unwrap();
    hold.waits.notified().await;
    // The pusher's git has a helper process that holds the connection: both go.
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(push.id().unwrap() as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    push.wait().await.unwrap();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !processes_in(world.folder.path()).is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "left running: {:?}", processes_in(world.folder.path()));
        tokio::task::yield_now().await;
    }
    *world.cluster.hold.lock().unwrap() = None;
    hold.go.notify_one();
    // The answer had nobody to go to, yet the ref was agreed: whoever asks next sees it, with its objects.
    ok(world.folder.path(), &["clone", "-q", &world.url("shop"), "copy"]).await;
    assert_eq!(ok(&world.path("copy"), &["rev-parse", "HEAD"]).await, tip.as_str());
}
