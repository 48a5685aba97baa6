//! Mirrors and hosted repositories with the real git on both sides, over a loopback server that does what `http` will do.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use futures::future::BoxFuture;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::process::Command;

use crate::*;
use swell_git::{Checkout, GitError, Mirrors};
use swell_model::{digest::Digest, ids::RepositoryName, rejection::Rejection, repository::CommitId};

mod aborted;
mod leftovers;

/// The cluster, as one server's memory.
#[derive(Default)]
struct Cluster {
    repositories: Mutex<BTreeMap<String, RepositoryState>>,
    bundles: Mutex<BTreeMap<Digest, Vec<u8>>>,
    /// The bundles of the repository `shop`, oldest first.
    order: Mutex<Vec<Digest>>,
    pushes: Mutex<Vec<PushRequest>>,
    refuse: Mutex<Option<Rejection>>,
    /// Makes pushes wait, and tells that one does.
    hold: Mutex<Option<Arc<Hold>>>,
}

#[derive(Default)]
struct Hold {
    waits: tokio::sync::Notify,
    go: tokio::sync::Notify,
}

impl PushSink for Cluster {
    fn push(&self, request: PushRequest) -> BoxFuture<'_, Result<String, SinkError>> {
        Box::pin(async move {
            if let Some(why) = self.refuse.lock().unwrap().clone() {
                return Err(SinkError::Refused(why));
            }
            let hold = self.hold.lock().unwrap().clone();
            if let Some(hold) = hold {
                hold.waits.notify_one();
                hold.go.notified().await;
            }
            let bundle = match &request.bundle_path {
                Some(path) => Some(tokio::fs::read(path).await.unwrap()),
                None => None,
            };
            let mut repositories = self.repositories.lock().unwrap();
            let state = repositories.get_mut(request.repository.as_str()).unwrap();
            for update in &request.updates {
                if state.refs.get(&update.name) != update.old.as_ref() {
                    return Err(SinkError::failed("move a ref")(format!("{} has moved: fetch first", update.name)));
                }
            }
            if let Some(bytes) = bundle {
                let digest = Digest::of(&bytes);
                self.order.lock().unwrap().push(digest);
                self.bundles.lock().unwrap().insert(digest, bytes);
            }
            for update in &request.updates {
                match update.new.clone() {
                    Some(new) => drop(state.refs.insert(update.name.clone(), new)),
                    None => drop(state.refs.remove(&update.name)),
                }
            }
            self.pushes.lock().unwrap().push(request);
            Ok("build b1 is queued".to_owned())
        })
    }

    fn state<'a>(&'a self, repository: &'a RepositoryName) -> BoxFuture<'a, Result<Option<RepositoryState>, SinkError>> {
        Box::pin(async move { Ok(self.repositories.lock().unwrap().get(repository.as_str()).cloned()) })
    }

    fn bundles<'a>(&'a self, _: &'a RepositoryName) -> BoxFuture<'a, Result<Vec<Digest>, SinkError>> {
        Box::pin(async move { Ok(self.order.lock().unwrap().clone()) })
    }

    fn bundle<'a>(&'a self, bundle: &'a Digest, destination: &'a Path) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            let bytes = self.bundles.lock().unwrap().get(bundle).cloned();
            let bytes = bytes.ok_or("it is lost").map_err(SinkError::failed("read a bundle"))?;
            tokio::fs::write(destination, bytes).await.map_err(SinkError::failed("write a bundle"))
        })
    }
}

/// A cluster that hosts `shop`, served over loopback, and a folder for the users' work.
struct World {
    cluster: Arc<Cluster>,
    folder: TempDir,
    hosted: HostedRepositories,
    address: SocketAddr,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut HostedRepositories)) -> Self {
        let folder = TempDir::new().unwrap();
        let cluster = Arc::new(Cluster::default());
        let shop = RepositoryState { default_branch: "main".to_owned(), refs: BTreeMap::new() };
        cluster.repositories.lock().unwrap().insert("shop".to_owned(), shop);
        let mut hosted =
            HostedRepositories::open(folder.path().join("hosted"), Arc::clone(&cluster) as Arc<dyn PushSink>).await.unwrap();
        change(&mut hosted);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = hosted.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let hosted = served.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(hosted.clone(), request));
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    server.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        Self { cluster, folder, hosted, address, server }
    }

    /// `/rw/…` for those who may push, `/ro/…` for those who may not.
    fn url(&self, name: &str) -> String {
        format!("http://{}/rw/{name}", self.address)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn refs(&self) -> BTreeMap<String, CommitId> {
        self.cluster.repositories.lock().unwrap()["shop"].refs.clone()
    }

    /// A work tree called `name` with one commit on `main` and the remote `swell`.
    async fn work_tree(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        ok(self.folder.path(), &["init", "-q", "-b", "main", name]).await;
        ok(&path, &["remote", "add", "swell", &self.url("shop")]).await;
        commit(&path, "readme", &format!("of {name}")).await;
        path
    }

    fn lose_cache(&self) {
        std::fs::remove_dir_all(self.path("hosted/shop.git")).unwrap();
    }
}

async fn answer(hosted: HostedRepositories, request: Request<Incoming>) -> Result<Response<GitBody>, Infallible> {
    let path = request.uri().path().to_owned();
    let (access, rest) = match path.strip_prefix("/rw/") {
        Some(rest) => (Access::Write { pusher: "ada".to_owned() }, rest),
        None => (Access::Read, path.strip_prefix("/ro/").unwrap()),
    };
    let (name, sub_path) = rest.split_once('/').unwrap();
    Ok(hosted.serve(&name.parse().unwrap(), sub_path, access, request).await)
}

struct Ended {
    success: bool,
    out: String,
    err: String,
}

async fn git(folder: &Path, args: &[&str]) -> Ended {
    let identity = [
        ("GIT_AUTHOR_NAME", "Ada"),
        ("GIT_AUTHOR_EMAIL", "ada@x"),
        ("GIT_COMMITTER_NAME", "Ada"),
        ("GIT_COMMITTER_EMAIL", "ada@x"),
    ];
    let mut command = Command::new("git");
    command
        .current_dir(folder)
        .args(["-c", "protocol.version=2"])
        .args(args)
        .envs(identity)
        .env("GIT_CONFIG_GLOBAL", "/dev/null");
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C")
        .env("GIT_COMMITTER_DATE", "1700000000 +0000");
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), output).await.expect("git hangs").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ended { success: output.status.success(), out: text(&output.stdout), err: text(&output.stderr) }
}

async fn ok(folder: &Path, args: &[&str]) -> String {
    let ended = git(folder, args).await;
    assert!(ended.success, "git {args:?}: {}\n{}", ended.out, ended.err);
    ended.out
}

async fn fails(folder: &Path, args: &[&str]) -> String {
    let ended = git(folder, args).await;
    assert!(!ended.success, "git {args:?} should fail: {}\n{}", ended.out, ended.err);
    ended.err
}

async fn commit(folder: &Path, file: &str, text: &str) -> CommitId {
    let path = folder.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    ok(folder, &["add", "-A"]).await;
    ok(folder, &["commit", "-q", "-m", &format!("Change {file}\n\nBody")]).await;
    ok(folder, &["rev-parse", "HEAD"]).await.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_push_can_be_cloned() {
    let world = World::new().await;
    let work = world.work_tree("work").await;
    // Larger than every buffer on the way, and more objects than git unpacks singly.
    for number in 0..150 {
        std::fs::write(work.join(format!("file-{number}")), format!("{number} ").repeat(5000)).unwrap();
    }
    let noise: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(work.join("noise"), noise).unwrap();
    let tip = commit(&work, "more", "text").await;

    let ended = git(&work, &["push", "swell", "main"]).await;
    assert!(ended.success, "{}", ended.err);
    assert!(ended.err.contains("remote: build b1 is queued"), "{}", ended.err);
    assert_eq!(world.refs(), BTreeMap::from([("refs/heads/main".to_owned(), tip.clone())]));
    let push = world.cluster.pushes.lock().unwrap()[0].clone();
    assert_eq!(
        (push.pusher.as_str(), push.updates[0].old.clone(), push.updates[0].new.clone()),
        ("ada", None, Some(tip.clone()))
    );
    assert!(!push.bundle_path.unwrap().exists(), "the bundle's file is removed");

    ok(world.folder.path(), &["clone", "-q", &world.url("shop"), "copy"]).await;
    assert_eq!(ok(&world.path("copy"), &["rev-parse", "HEAD"]).await, tip.as_str());
    assert_eq!(std::fs::read(world.path("copy/noise")).unwrap(), std::fs::read(work.join("noise")).unwrap());
    // Nothing new is nothing to agree on.
    ok(&work, &["push", "swell", "main"]).await;
    assert_eq!(world.cluster.pushes.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_push_says_why_and_changes_nothing() {
    let world = World::new().await;
    let work = world.work_tree("work").await;
    ok(&work, &["push", "-q", "swell", "main"]).await;
    let before = world.refs();
    commit(&work, "second", "x").await;
    let (what, why) = ("production is frozen until Monday".to_owned(), "holidays\nask grace@x to lift it".to_owned());
    *world.cluster.refuse.lock().unwrap() = Some(Rejection::Invalid { what, why });
    let error = fails(&work, &["push", "swell", "main"]).await;
    assert!(error.contains("remote: production is frozen until Monday"), "{error}");
    assert!(error.contains("remote: ask grace@x to lift it"), "{error}");
    assert_eq!(world.refs(), before);
    let listed = ok(&work, &["ls-remote", "swell", "refs/heads/main"]).await;
    assert!(listed.starts_with(before["refs/heads/main"].as_str()), "{listed}");

    *world.cluster.refuse.lock().unwrap() = None;
    ok(&work, &["push", "-q", "swell", "main"]).await;
    for (name, why) in [("refs/notes/x", "is not kept here"), ("refs/heads/main/sub", "cannot exist beside")] {
        let error = fails(&work, &["push", "swell", &format!("HEAD:{name}")]).await;
        assert!(error.contains(why), "{error}");
    }
    let error = fails(&work, &["push", &format!("http://{}/ro/shop", world.address), "HEAD:refs/heads/x"]).await;
    assert!(error.contains("403") && error.contains("not push"), "{error}");
    let error = fails(&work, &["push", &world.url("unknown"), "main"]).await;
    assert!(error.contains("not found"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_or_broken_cache_is_rebuilt_from_bundles() {
    let world = World::new().await;
    let work = world.work_tree("work").await;
    ok(&work, &["push", "-q", "swell", "main"]).await;
    commit(&work, "second", &"long enough to be worth a delta ".repeat(400)).await;
    ok(&work, &["tag", "-a", "v1", "-m", "first"]).await;
    ok(&work, &["push", "-q", "swell", "main", "v1"]).await;
    world.lose_cache();
    // The next push builds on objects that are only in bundles, and on another branch.
    ok(&work, &["switch", "-q", "-c", "topic"]).await;
    commit(&work, "second", &("x".to_owned() + &"long enough to be worth a delta ".repeat(400))).await;
    ok(&work, &["push", "-q", "swell", "topic"]).await;
    ok(&work, &["push", "-q", "swell", "topic:same-again"]).await;
    assert_eq!(world.cluster.bundles.lock().unwrap().len(), 3, "a ref to what is there brings no bundle");

    world.lose_cache();
    ok(world.folder.path(), &["clone", "-q", &world.url("shop"), "copy"]).await;
    ok(&world.path("hosted/shop.git"), &["fsck", "--strict"]).await;
    let listed = ok(&world.path("copy"), &["ls-remote", "origin"]).await;
    for (name, id) in world.refs() {
        assert!(listed.contains(&format!("{id}\t{name}")), "{name} in {listed}");
    }

    // A disk that lost a part of it.
    for pack in std::fs::read_dir(world.path("hosted/shop.git/objects/pack")).unwrap() {
        std::fs::remove_file(pack.unwrap().path()).unwrap();
    }
    let tip = commit(&work, "third", "x").await;
    fails(&work, &["push", "-q", "swell", "topic"]).await;
    ok(&work, &["push", "-q", "swell", "topic"]).await;
    assert_eq!(world.refs()["refs/heads/topic"], tip);

    // Every bundle is one that git itself reads.
    let bundles = world.cluster.bundles.lock().unwrap().clone();
    for (digest, bytes) in bundles {
        let path = world.path(&digest.hex());
        std::fs::write(&path, bytes).unwrap();
        ok(&work, &["bundle", "verify", "-q", path.to_str().unwrap()]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_can_be_rewound_and_deleted() {
    let world = World::new().await;
    let work = world.work_tree("work").await;
    commit(&work, "second", "x").await;
    ok(&work, &["push", "-q", "swell", "main", "main:other"]).await;
    ok(&work, &["commit", "-q", "--amend", "-m", "Another"]).await;
    fails(&work, &["push", "-q", "swell", "main"]).await;
    ok(&work, &["push", "-q", "--force", "swell", "main"]).await;
    let tip: CommitId = ok(&work, &["rev-parse", "HEAD"]).await.parse().unwrap();
    assert_eq!(world.refs()["refs/heads/main"], tip);
    ok(&work, &["push", "-q", "swell", ":other"]).await;
    assert_eq!(world.refs().keys().collect::<Vec<_>>(), ["refs/heads/main"]);
    // A name that was in the way is free now, also where the cache has yet to learn of it.
    world.lose_cache();
    ok(&work, &["push", "-q", "swell", "main:other/below"]).await;
    ok(&work, &["push", "-q", "swell", ":main"]).await;
    assert_eq!(world.refs().keys().collect::<Vec<_>>(), ["refs/heads/other/below"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_pushes_have_exactly_one_winner() {
    let world = World::new().await;
    let work = world.work_tree("work").await;
    ok(&work, &["push", "-q", "swell", "main"]).await;
    let mut tips = Vec::new();
    for number in 0..4 {
        let name = format!("copy-{number}");
        ok(world.folder.path(), &["clone", "-q", "-o", "swell", &world.url("shop"), &name]).await;
        tips.push(commit(&world.path(&name), "mine", &name).await);
    }
    let paths: Vec<PathBuf> = (0..4).map(|number| world.path(&format!("copy-{number}"))).collect();
    let ended = futures::future::join_all(paths.iter().map(|path| git(path, &["push", "swell", "main"]))).await;
    let winners: Vec<usize> = (0..4).filter(|&number| ended[number].success).collect();
    assert_eq!(winners.len(), 1, "{:?}", ended.iter().map(|e| &e.err).collect::<Vec<_>>());
    assert_eq!(world.refs()["refs/heads/main"], tips[winners[0]]);
    let listed = ok(&work, &["ls-remote", "swell", "refs/heads/main"]).await;
    assert!(listed.starts_with(tips[winners[0]].as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_lists_refs_and_checks_out() {
    let world = World::new().await;
    let work = world.work_tree("work").await;
    let first = commit(&work, "services/shop/swell.toml", "[build]\n").await;
    let second = commit(&work, "libs/ü b", "x").await;
    ok(&work, &["tag", "-a", "v1", "-m", "first", first.as_str()]).await;
    ok(&work, &["push", "-q", "swell", "main", "v1"]).await;

    let mirrors = Mirrors::open(world.path("mirrors")).await.unwrap();
    let url = world.url("shop");
    let listing = mirrors.ls_remote(&url, None).await.unwrap();
    assert_eq!(listing.head.as_deref(), Some("refs/heads/main"));
    assert_eq!(listing.refs, [("refs/heads/main".to_owned(), second.clone()), ("refs/tags/v1".to_owned(), first.clone())]);

    let mirror = mirrors.of(&url, Some("unused".to_owned())).await.unwrap();
    mirror.fetch().await.unwrap();
    assert_eq!(mirror.changed_paths(Some(&first), &second).await.unwrap(), ["libs/ü b"]);
    assert_eq!(mirror.changed_paths(None, &first).await.unwrap(), ["readme", "services/shop/swell.toml"]);
    assert_eq!(mirror.file_at(&second, "services/shop/swell.toml", 100).await.unwrap(), b"[build]\n");
    assert!(matches!(mirror.file_at(&second, "services/shop/swell.toml", 3).await, Err(GitError::TooLarge { .. })));
    assert!(matches!(mirror.file_at(&second, "services", 100).await, Err(GitError::PathNotFound { .. })));
    assert!(matches!(mirror.file_at(&second, "../x", 100).await, Err(GitError::Invalid { .. })));

    let dest = world.path("checkout");
    assert_eq!(mirror.checkout(&first, &dest).await.unwrap(), Checkout { commit: first.clone(), committed_at_s: 1_700_000_000 });
    assert!(mirror.checkout(&first, &dest).await.is_err(), "only into an empty folder");
    std::fs::remove_dir_all(world.path("mirrors")).unwrap();
    assert_eq!(ok(&dest, &["status", "--porcelain", "--ignored"]).await, "");
    assert_eq!(ok(&dest, &["rev-parse", "HEAD"]).await, first.as_str());
    assert!(dest.join("services/shop/swell.toml").exists() && !dest.join("libs").exists());
}

/// The refs of the one mirror in `folder`.
async fn mirrored(folder: &Path) -> Vec<String> {
    let mut paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let git_dir = paths.find(|path| path.extension().is_some_and(|extension| extension == "git")).unwrap();
    ok(&git_dir, &["for-each-ref", "--format=%(refname)"]).await.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrored_commit_outlives_its_branch() {
    let world = World::new().await;
    let work = world.work_tree("work").await;
    ok(&work, &["push", "-q", "swell", "main"]).await;
    ok(&work, &["switch", "-q", "-c", "topic"]).await;
    let topic = commit(&work, "topic", "x").await;
    ok(&work, &["push", "-q", "swell", "topic"]).await;
    let mirror = Mirrors::open(world.path("one")).await.unwrap().of(&world.url("shop"), None).await.unwrap();
    mirror.fetch().await.unwrap();
    assert_eq!(mirrored(&world.path("one")).await, ["refs/heads/main", "refs/heads/topic"]);

    ok(&work, &["push", "-q", "swell", ":topic"]).await;
    mirror.fetch().await.unwrap();
    assert_eq!(mirrored(&world.path("one")).await, ["refs/heads/main"]);
    mirror.checkout(&topic, &world.path("checkout")).await.unwrap();

    // A machine that has never seen it.
    let other = Mirrors::open(world.path("two")).await.unwrap().of(&world.url("shop"), None).await.unwrap();
    other.fetch_commit(&topic).await.unwrap();
    other.checkout(&topic, &world.path("checkout-2")).await.unwrap();
    let unknown: CommitId = "1234567890123456789012345678901234567890".parse().unwrap();
    let error = other.fetch_commit(&unknown).await.unwrap_err();
    assert!(matches!(error, GitError::RefNotFound { .. }) && !error.retryable(), "{error}");
    assert!(error.to_string().contains("deleted"), "{error}");
    assert!(matches!(other.checkout(&unknown, &world.path("checkout-3")).await, Err(GitError::RefNotFound { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_repositories_get_distinct_errors() {
    let world = World::new().await;
    let mirrors = Mirrors::open(world.path("mirrors")).await.unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (url, expected) in [
        (world.path("nowhere").to_str().unwrap().to_owned(), "no repository at"),
        (format!("file://{}", world.path("nowhere").display()), "no repository at"),
        (world.url("unknown"), "no repository at"),
        (format!("http://{closed}/x.git"), "cannot reach"),
        ("https://host.invalid/x.git".to_owned(), "cannot reach"),
        ("--upload-pack=id".to_owned(), "is not a repository's address"),
    ] {
        let listed = mirrors.ls_remote(&url, None).await.map(|_| ()).unwrap_err().to_string();
        let fetched = match mirrors.of(&url, None).await {
            Ok(mirror) => mirror.fetch().await.unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(listed.contains(expected), "{url}: {listed}");
        assert!(fetched.contains(expected), "{url}: {fetched}");
    }
}
