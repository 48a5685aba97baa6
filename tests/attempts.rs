//! Attempts from outside: real repositories, real shims and containers, real kills. Needs root, and says so where it is not.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture};
use swell_artifacts::{
    log::read_log,
    manifest::{MANIFEST_BYTES_MAX, Manifest},
    store::{ContentStore, Embedded, EmbeddedOptions, read_small},
};
use swell_git::Mirrors;
use swell_model::{
    apply::apply,
    build::{AttemptEnd, Build, BuildFailure, BuildState, Cause, Phase, Resources},
    command::{self, Action, BuildAction, FleetAction, PipelineAction},
    event::{EventSeq, Subject},
    ids::BuildId,
    interfaces::{LogChunk, LogSource, Proposal, ProposeError, Proposer},
    pipeline::{Retention, Source},
    principal::Principal,
    rejection::RuleError,
    release::Artifact,
    tables::{MemoryTables, ReadTables, key},
    units::{ByteSize, Timestamp},
};
use swell_runner::attempts::{AttemptJob, Attempts, AttemptsOptions, GitSource};
use swell_sandbox::{
    isolation::{self, Level},
    runtime::ShimRuntime,
};
use tokio::sync::watch;

const SWELL: &str = env!("CARGO_BIN_EXE_swell");
const PATIENCE: Duration = Duration::from_secs(120);
const GOOD: &str =
    "[build]\nrun = \"make\"\nmemory = \"256MiB\"\n[test]\nrun = \"make check\"\n[package]\nrun = \"make install prefix=$OUT\"\n";
const MAKEFILE: &str = "all:\n\t@echo built $$SWELL_PIPELINE >> built; echo compiling\ncheck:\n\t@test -f built; echo café; echo warned >&2\n\
    install:\n\t@mkdir -p $(prefix)/bin; cp built $(prefix)/bin/app; chmod +x $(prefix)/bin/app; date -d @$$SOURCE_DATE_EPOCH > $(prefix)/when\n";

/// State that outlives the process: every command that was applied is a line of a file.
struct State {
    tables: Mutex<(MemoryTables, u64)>,
    file: PathBuf,
    /// Proposals to fail with "no leader" before one is heard.
    deaf_for: Mutex<u32>,
}

impl State {
    fn open(root: &Path) -> Arc<Self> {
        let file = root.join("commands");
        let state = Self { tables: Mutex::new((MemoryTables::new(), 0)), file, deaf_for: Mutex::new(0) };
        for line in fs::read_to_string(&state.file).unwrap_or_default().lines() {
            let command: command::Command = rmp_serde::from_slice(&hex::decode(line).unwrap()).unwrap();
            state.apply(&command).unwrap();
        }
        Arc::new(state)
    }

    fn apply(&self, command: &command::Command) -> Result<command::Outcome, ProposeError> {
        let mut tables = self.tables.lock().unwrap();
        let mut next = tables.0.clone();
        let index = tables.1 + 1;
        match apply(&mut next, EventSeq { index, ordinal: 0 }, command) {
            Ok(applied) => {
                *tables = (next, index);
                Ok(applied.outcome)
            }
            Err(RuleError::Rejected(rejection)) => Err(rejection.into()),
            Err(RuleError::Tables(error)) => panic!("{error}"),
        }
    }

    fn say(&self, action: impl Into<Action>) -> Result<command::Outcome, ProposeError> {
        self.propose_now(Proposal::new(action, Principal::system("test")))
    }

    fn propose_now(&self, proposal: Proposal) -> Result<command::Outcome, ProposeError> {
        let Proposal { action, principal, idempotency_key, fingerprint, epoch, if_revision } = proposal;
        let at = Timestamp(self.tables.lock().unwrap().1 * 1000);
        let monotonic = swell_model::clock::MonotonicTime { run: 1, elapsed: swell_model::units::Millis(at.0) };
        let command = command::Command { action, principal, at, monotonic, idempotency_key, fingerprint, epoch, if_revision };
        let outcome = self.apply(&command)?;
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&self.file).unwrap();
        let line = hex::encode(rmp_serde::to_vec_named(&command).unwrap()) + "\n";
        file.write_all(line.as_bytes()).unwrap();
        Ok(outcome)
    }

    fn build(&self, id: BuildId) -> Build {
        self.tables.lock().unwrap().0.get(&key(id.0)).unwrap().unwrap()
    }

    fn artifact(&self, build: &Build) -> Artifact {
        self.tables.lock().unwrap().0.get(&key(build.artifact.unwrap().hex().as_str())).unwrap().unwrap()
    }
}

impl Proposer for State {
    fn propose(&self, proposal: Proposal) -> BoxFuture<'_, Result<command::Outcome, ProposeError>> {
        async move {
            {
                let mut deaf_for = self.deaf_for.lock().unwrap();
                if *deaf_for > 0 {
                    *deaf_for -= 1;
                    return Err(ProposeError::NoLeader);
                }
            }
            self.propose_now(proposal)
        }
        .boxed()
    }
}

fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"])
        .arg("-C")
        .arg(dir)
        .args(args)
        .env("GIT_AUTHOR_DATE", "1700000000 +0000")
        .env("GIT_COMMITTER_DATE", "1700000000 +0000")
        .output()
        .unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A repository, a runner and state, all in one folder; nothing of them is left at the end.
struct Place {
    root: PathBuf,
    _owned: Option<tempfile::TempDir>,
    state: Arc<State>,
    content: Arc<Embedded>,
    attempts: Attempts,
}

impl Place {
    async fn new(file: &str) -> Self {
        let owned = tempfile::tempdir().unwrap();
        let root = owned.path().to_owned();
        let repository = root.join("repository");
        fs::create_dir(&repository).unwrap();
        git(&repository, &["init", "--quiet"]);
        fs::write(repository.join("swell.toml"), file).unwrap();
        fs::write(repository.join("Makefile"), MAKEFILE).unwrap();
        git(&repository, &["add", "."]);
        git(&repository, &["commit", "--quiet", "-m", "one"]);
        let mut place = Self::open(&root, isolation_level()).await;
        place._owned = Some(owned);
        place
            .state
            .say(PipelineAction::Create {
                name: "shop".parse().unwrap(),
                source: Source::Remote(repository.to_string_lossy().into_owned()),
                file: "swell.toml".into(),
                concurrency: 4,
                supersede: false,
                retention: Retention::default(),
            })
            .unwrap();
        let resources = Resources { cpu_millis: 8000, memory: ByteSize(8 << 30) };
        place.state.say(FleetAction::RegisterRunner { name: "r1".parse().unwrap(), resources }).unwrap();
        place
    }

    /// What a server does when it starts.
    async fn open(root: &Path, isolation: Level) -> Self {
        let state = State::open(root);
        let content = Arc::new(Embedded::open(root.join("content"), EmbeddedOptions::default()).await.unwrap());
        let mirrors = Mirrors::open(root.join("mirrors")).await.unwrap();
        let options = AttemptsOptions {
            data_dir: root.join("runner"),
            runner: "r1".parse().unwrap(),
            shim: ShimRuntime::with_executable(SWELL),
            isolation,
            allow_unisolated: true,
        };
        let attempts = Attempts::open(options, content.clone(), mirrors, state.clone()).await.unwrap();
        Self { root: root.to_owned(), _owned: None, state, content, attempts }
    }

    fn head(&self) -> String {
        git(&self.root.join("repository"), &["rev-parse", "HEAD"])
    }

    /// Queues a build of `commit` and assigns it.
    fn assign(&self, commit: &str) -> BuildId {
        let request = BuildAction::Request {
            pipeline: "shop".parse().unwrap(),
            commit: commit.parse().unwrap(),
            git_ref: "refs/heads/main".into(),
            cause: Cause::Manual,
            again: true,
            resources: Resources::default(),
        };
        let Subject::Build(build) = self.state.say(request).unwrap().subject else { panic!("no build") };
        self.state.say(BuildAction::Assign { build, runner: "r1".parse().unwrap() }).unwrap();
        build
    }

    fn job(&self, build: BuildId) -> AttemptJob {
        let build = self.state.build(build);
        let attempt = build.attempts.last().unwrap().number;
        let url = self.root.join("repository").to_string_lossy().into_owned();
        AttemptJob { build, attempt, file: "swell.toml".into(), source: Ok(GitSource { url, token: None }) }
    }

    async fn run_to_end(&self, build: BuildId) -> Build {
        let (_stop, stopped) = watch::channel(false);
        tokio::time::timeout(PATIENCE, self.attempts.run(self.job(build), stopped)).await.unwrap();
        self.state.build(build)
    }

    /// Builds the head once, to its end.
    async fn build(&self) -> Build {
        self.run_to_end(self.assign(&self.head())).await
    }

    async fn log(&self, build: &Build) -> Vec<LogChunk> {
        let digest = build.attempts.last().unwrap().log.expect("a log");
        read_log(self.content.clone(), digest, 0).await.unwrap().try_collect().await.unwrap()
    }

    async fn log_text(&self, build: &Build) -> String {
        self.log(build).await.into_iter().map(|chunk| chunk.text).collect()
    }

    /// Removes what the attempts left, and checks that they left nothing.
    async fn close(self) {
        for (build, attempt) in self.attempts.on_disk() {
            self.attempts.discard(build, attempt).await;
        }
        self.assert_nothing_left();
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.attempts.on_disk(), []);
        assert_eq!(fs::read_dir(self.root.join("runner/attempts")).unwrap().count(), 0);
        let root = self.root.to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(root), "mounts left: {mounts}");
        assert_eq!(processes_of(root), [] as [String; 0], "processes left");
        let attempts = self.root.join("runner/attempts").canonicalize().unwrap();
        let tag = swell_model::digest::Digest::of(attempts.as_os_str().as_encoded_bytes()).hex()[..8].to_owned();
        for controller in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let groups = fs::read_dir(controller.path().join("groundswell/builds")).into_iter().flatten().flatten();
            let ours: Vec<_> =
                groups.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().starts_with(&tag)).collect();
            assert!(ours.is_empty(), "control groups left: {ours:?}");
        }
    }
}

/// Live processes whose command line or working folder names `root`.
fn processes_of(root: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let line = String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).unwrap_or_default()).replace('\0', " ");
        let cwd = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if pid != std::process::id() && (line.contains(root) || cwd.starts_with(root)) {
            found.push(format!("{pid} {line}"));
        }
    }
    found
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Looked at once: two looks at a time would be in each other's way.
fn isolation_level() -> Level {
    static LEVEL: LazyLock<Level> = LazyLock::new(|| isolation::probe().level);
    LEVEL.clone()
}

/// Whether containers can be made here; says so loudly where not, and fails in CI.
fn permitted() -> bool {
    let Level::None { why } = isolation_level() else { return true };
    eprintln!("SKIPPED: this machine does not allow isolation: {why}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped in CI: {why}");
    false
}

macro_rules! needs_isolation {
    () => {
        if !permitted() {
            return;
        }
    };
}

fn failure(build: &Build) -> BuildFailure {
    match build.attempts.last().unwrap().end.clone() {
        Some(AttemptEnd::Failed(failure) | AttemptEnd::TimedOut(failure)) => failure,
        other => panic!("it ended otherwise: {other:?}"),
    }
}

#[tokio::test]
async fn a_commit_becomes_the_same_artifact_each_time() {
    needs_isolation!();
    let place = Place::new(GOOD).await;
    let first = place.build().await;
    assert_eq!(first.state, BuildState::ReadyToDeploy, "{:?}", first.attempts);
    let second = place.build().await;
    assert_eq!((second.artifact, second.state), (first.artifact, BuildState::ReadyToDeploy));
    let artifact = place.state.artifact(&first);
    let stored = place.content.stat(artifact.digest).await.unwrap().unwrap();
    assert_eq!(artifact.size, ByteSize(stored.size));
    let manifest = place.state.artifact(&second).manifest;
    let manifest = read_small(&*place.content, manifest, MANIFEST_BYTES_MAX as u64).await.unwrap();
    let manifest = Manifest::from_bytes(&manifest).unwrap();
    // The first one stays: releases that name it are under way.
    assert_eq!((manifest.digest, manifest.commit, manifest.build), (artifact.digest, place.head(), Some(first.id)));
    assert!(manifest.host_fingerprint.unwrap().starts_with("sha256:"));
    let phases = &first.attempts[0].phases;
    assert_eq!(phases.iter().map(|phase| phase.phase).collect::<Vec<_>>(), Phase::ALL);
    assert!(phases.iter().all(|phase| phase.ended_at.is_some() && !phase.skipped), "{phases:?}");
    assert!(phases[1].exit_code == Some(0) && phases[1].memory_peak.is_some() && phases[1].cpu_time.is_some(), "{phases:?}");
    assert_eq!(first.attempts[0].unisolated, None);
    let log = place.log(&first).await;
    let line =
        |text: &str| log.iter().find(|chunk| chunk.text.contains(text)).unwrap_or_else(|| panic!("{text} is not in {log:?}"));
    assert_eq!((line("checking out").phase.as_str(), line("compiling").phase.as_str()), ("checkout", "build"));
    assert!(line("café\n").phase == "test" && line("warned").stderr && !line("café").stderr);
    assert!(line("packed 2 files").text.contains(&artifact.digest.to_string()));
    assert!(log.windows(2).all(|pair| pair[0].end == pair[1].start) && log[0].start == 0);
    place.close().await;
}

#[tokio::test]
async fn a_phase_that_fails_says_which_and_why() {
    needs_isolation!();
    let script = |build: &str, test: &str, package: &str| {
        format!("[build]\nrun = '''{build}'''\n[test]\nrun = '''{test}'''\n[package]\nrun = '''{package}'''\n")
    };
    let cases = [
        (
            script("echo broken; exit 2", "true", "true"),
            BuildState::BuildFailed,
            Phase::Build,
            "`echo broken; exit 2` ended with exit code 2",
            "broken",
        ),
        (
            script("true", "echo no >&2\nexit 1", "true"),
            BuildState::TestFailed,
            Phase::Test,
            "`echo no >&2 …` ended with exit code 1",
            "no",
        ),
        (
            script("true", "true", "no-such-command"),
            BuildState::BuildFailed,
            Phase::Package,
            "`no-such-command` ended with exit code 127",
            "not found",
        ),
        (
            script("true", "true", "mkdir $OUT/empty"),
            BuildState::BuildFailed,
            Phase::Package,
            "[package] left nothing under $OUT",
            "",
        ),
        (script("true", "true", "mkfifo $OUT/fifo"), BuildState::BuildFailed, Phase::Package, "fifo", ""),
    ];
    for (file, state, phase, reason, output) in cases {
        let place = Place::new(&file).await;
        let build = place.build().await;
        let failure = failure(&build);
        assert_eq!((build.state, failure.phase), (state, phase), "{failure:?}");
        assert!(failure.reason.contains(reason) && failure.output.contains(output) && !failure.hint.is_empty(), "{failure:?}");
        assert!(place.log_text(&build).await.contains(&failure.reason));
        assert!(build.attempts[0].phases.iter().all(|phase| phase.ended_at.is_some()));
        place.close().await;
    }
}

#[tokio::test]
async fn phases_that_are_not_given_are_skipped() {
    needs_isolation!();
    let place = Place::new("[package]\nrun = \"env | sort > $OUT/env; pwd >> $OUT/env; echo $HOME > $HOME/x\"\n").await;
    let build = place.build().await;
    assert_eq!(build.state, BuildState::ReadyToDeploy, "{:?}", build.attempts);
    let skipped: Vec<_> = build.attempts[0].phases.iter().map(|phase| phase.skipped).collect();
    assert_eq!(skipped, [false, true, true, false, false]);
    let env = fs::read_to_string(place.root.join(format!("runner/attempts/{}-1/out/env", build.id))).unwrap();
    for expected in [
        "CI=true",
        "SOURCE_DATE_EPOCH=1700000000",
        "TZ=UTC",
        "LC_ALL=C.UTF-8",
        "OUT=/out",
        "HOME=/tmp",
        "SWELL_BRANCH=main",
        "/workspace",
    ] {
        assert!(env.lines().any(|line| line == expected), "{expected} is not in {env}");
    }
    assert!(env.contains(&format!("SWELL_COMMIT={}", place.head())) && env.contains(&format!("SWELL_BUILD={}", build.id)));
    place.close().await;
}

#[tokio::test]
async fn what_is_wrong_with_the_commit_fails_and_what_is_wrong_with_the_network_is_lost() {
    needs_isolation!();
    let place = Place::new("[build]\nrun = \"make\"\nmemroy = \"1GiB\"\n").await;
    let wrong = place.build().await;
    let told = failure(&wrong);
    assert_eq!((wrong.state, told.phase), (BuildState::BuildFailed, Phase::Checkout));
    assert!(told.output.contains("--> swell.toml:3:1") && told.output.contains("did you mean `memory`"), "{told:?}");
    assert!(place.log_text(&wrong).await.contains("did you mean `memory`"));

    let gone = place.run_to_end(place.assign(&"1".repeat(40))).await;
    let told = failure(&gone);
    assert!(
        gone.state == BuildState::BuildFailed
            && told.reason.contains("deleted or never pushed")
            && told.hint.contains("swell build"),
        "{told:?}"
    );

    let build = place.assign(&place.head());
    let job = AttemptJob { source: Ok(GitSource { url: "http://127.0.0.1:1/x.git".into(), token: None }), ..place.job(build) };
    place.attempts.run(job, watch::channel(false).1).await;
    let unreachable = place.state.build(build);
    assert_eq!(unreachable.state, BuildState::Queued, "{:?}", unreachable.attempts);
    assert!(
        matches!(&unreachable.attempts[0].end, Some(AttemptEnd::Lost(why)) if why.contains("cannot reach")),
        "{unreachable:?}"
    );

    let build = place.assign(&place.head());
    let job = AttemptJob { source: Ok(GitSource { url: "/no/such/repository".into(), token: None }), ..place.job(build) };
    place.attempts.run(job, watch::channel(false).1).await;
    assert_eq!(place.state.build(build).state, BuildState::BuildFailed);
    place.close().await;
}

#[tokio::test]
async fn limits_end_a_phase_and_are_told_as_such() {
    needs_isolation!();
    let package = "[package]\nrun = \"true\"\n";
    let slow = Place::new(&format!("[build]\nrun = \"echo begun; sleep 600 & sleep 600\"\ntimeout = \"2s\"\n{package}")).await;
    let build = slow.build().await;
    assert_eq!(build.state, BuildState::TimedOut);
    assert!(failure(&build).reason.contains("not done after the 2s") && failure(&build).output.contains("begun"), "{build:?}");
    slow.close().await;

    let hungry = Place::new(&format!("[build]\nrun = \"tail /dev/zero\"\nmemory = \"32MiB\"\n{package}")).await;
    let build = hungry.build().await;
    assert!(failure(&build).reason.contains("out of memory (limit 32MiB, peak"), "{:?}", failure(&build));
    hungry.close().await;

    let fat =
        Place::new(&format!("[build]\nrun = \"head -c 40M /dev/zero > fat; sleep 600\"\ndisk = \"16MiB\"\n{package}")).await;
    let build = fat.build().await;
    assert!(failure(&build).reason.contains("more than the 16MiB of [build].disk"), "{:?}", failure(&build));
    fat.close().await;
}

#[tokio::test]
async fn a_build_is_followed_live_and_canceled() {
    needs_isolation!();
    let place = Place::new("[build]\nrun = \"echo begun; sleep 600\"\n[package]\nrun = \"true\"\n").await;
    let build = place.assign(&place.head());
    assert!(place.attempts.follow(build, 1, 0).is_none());
    let (stop, stopped) = watch::channel(false);
    let (attempts, job) = (place.attempts.clone(), place.job(build));
    let run = tokio::spawn(async move { attempts.run(job, stopped).await });
    eventually("the attempt is on disk", || place.attempts.on_disk() == [(build, 1)]).await;
    let mut lines = place.attempts.follow(build, 1, 0).unwrap();
    let mut text = String::new();
    while !text.contains("begun\n") {
        text += &tokio::time::timeout(PATIENCE, lines.next()).await.unwrap().unwrap().text;
    }
    place.state.say(BuildAction::Cancel { build }).unwrap();
    stop.send(true).unwrap();
    tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
    assert_eq!(place.state.build(build).state, BuildState::Canceled);
    while let Some(chunk) = tokio::time::timeout(PATIENCE, lines.next()).await.unwrap() {
        text += &chunk.text;
    }
    assert!(text.ends_with("canceled\n"), "{text}");
    assert_eq!(text, place.log_text(&place.state.build(build)).await);
    place.close().await;
}

#[tokio::test]
async fn an_attempt_that_is_not_live_is_killed_and_removed() {
    needs_isolation!();
    let place = Place::new("[build]\nrun = \"echo begun; sleep 600\"\n[package]\nrun = \"true\"\n").await;
    let build = place.assign(&place.head());
    let job = place.job(build);
    let end = AttemptEnd::Lost("the runner was silent".into());
    // Fenced before it begins.
    place.state.say(BuildAction::End { build, attempt: 1, end: end.clone(), log: None }).unwrap();
    place.attempts.run(job, watch::channel(false).1).await;
    place.assert_nothing_left();
    // Fenced while it runs, which the next thing that it says reveals.
    place.state.say(BuildAction::Assign { build, runner: "r1".parse().unwrap() }).unwrap();
    let (attempts, job) = (place.attempts.clone(), place.job(build));
    let (stop, stopped) = watch::channel(false);
    let run = tokio::spawn(async move { attempts.run(job, stopped).await });
    eventually("the phase runs", || place.state.build(build).attempts[1].phases.len() == 2).await;
    place.state.say(BuildAction::End { build, attempt: 2, end, log: None }).unwrap();
    stop.send(true).unwrap();
    tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
    place.assert_nothing_left();
    assert_eq!(place.state.build(build).state, BuildState::Queued);
}

#[tokio::test]
async fn builds_go_on_while_no_server_leads() {
    needs_isolation!();
    let place = Place::new(GOOD).await;
    *place.state.deaf_for.lock().unwrap() = 5;
    let build = place.build().await;
    assert_eq!(build.state, BuildState::ReadyToDeploy, "{:?}", build.attempts);
    place.close().await;
}

#[tokio::test]
async fn without_isolation_it_is_said_loudly() {
    let place = Place::new(GOOD).await;
    let bare = Place::open(&place.root, Level::None { why: "it is forbidden here".into() }).await;
    let build = bare.build().await;
    assert_eq!(build.state, BuildState::ReadyToDeploy, "{:?}", build.attempts);
    assert_eq!(build.attempts[0].unisolated.as_deref(), Some("it is forbidden here"));
    assert!(bare.log_text(&build).await.contains("NOT ISOLATED: it is forbidden here"));
    bare.close().await;
}

/// How often `[build]` ran, by what it left in the artifact.
fn times_built(place: &Place, build: BuildId) -> usize {
    let kept = fs::read_to_string(place.root.join(format!("runner/attempts/{build}-1/out/bin/app"))).unwrap();
    kept.lines().count()
}

/// The work of [`kill_9_at_any_point_leads_to_the_same_artifact`]: a server that runs the attempt in the folder it is given.
#[tokio::test]
async fn child() {
    let Some(root) = std::env::var_os("ATTEMPTS_TEST_ROOT") else { return };
    let place = Place::open(Path::new(&root), Level::Full).await;
    place.run_to_end(BuildId(std::env::var("ATTEMPTS_TEST_BUILD").unwrap().parse().unwrap())).await;
}

fn child_command(place: &Place, build: BuildId, crash_at: Option<&str>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--test-threads=1"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("ATTEMPTS_TEST_ROOT", &place.root).env("ATTEMPTS_TEST_BUILD", build.0.to_string());
    match crash_at {
        Some(point) => command.env("SWELL_CRASH_AT", point),
        None => command.env_remove("SWELL_CRASH_AT"),
    };
    command
}

#[tokio::test]
async fn kill_9_at_any_point_leads_to_the_same_artifact() {
    needs_isolation!();
    let reference = Place::new(GOOD).await;
    let expected = reference.build().await.artifact.unwrap();
    let commit = reference.head();
    reference.close().await;
    let points = [
        "acknowledging",
        "begun",
        "before_checkout",
        "checked_out",
        "checkout_recorded",
        "before_phase",
        "phase_recorded:2",
        "phase_started",
        "phase_ended",
        "phase_done:2",
        "phase_started:3",
        "packed",
        "artifact_stored",
        "manifest_stored",
        "upload_done",
        "log_stored",
        "end_recorded",
        "end_told",
    ];
    for point in points
        .map(|point| format!("attempt::{point}"))
        .into_iter()
        .chain(["runtime::before_shim".into(), "runtime::after_shim".into()])
    {
        let place = Place::new(GOOD).await;
        assert_eq!(place.head(), commit);
        let build = place.assign(&commit);
        let status = child_command(&place, build, Some(&point)).status().unwrap();
        assert_eq!(status.signal(), Some(9), "{point} was not passed");
        let after = Place::open(&place.root, Level::Full).await;
        if after.state.build(build).live_attempt().is_some() {
            after.run_to_end(build).await;
        }
        let built = after.state.build(build);
        assert_eq!((built.state, built.artifact), (BuildState::ReadyToDeploy, Some(expected)), "{point}: {:?}", built.attempts);
        assert_eq!(built.attempts.len(), 1, "{point}");
        assert!(built.attempts[0].phases.iter().all(|phase| phase.ended_at.is_some()), "{point}: {:?}", built.attempts);
        assert_eq!(times_built(&after, build), 1, "{point}: a phase was run twice");
        let log = after.log_text(&built).await;
        assert!(log.matches("compiling\n").count() == 1 && log.matches("café\n").count() == 1, "{point}: {log}");
        after.close().await;
    }
}

#[tokio::test]
async fn a_running_phase_survives_its_server_and_is_adopted_or_removed() {
    needs_isolation!();
    let script = "[build]\nrun = \"echo begun >> built; while ! test -f go; do sleep 0.05; done\"\n[package]\nrun = \"mkdir $OUT/bin; cp built $OUT/bin/app\"\n";
    let place = Place::new(script).await;
    for adopt in [true, false] {
        let build = place.assign(&place.head());
        let mut child = child_command(&place, build, None).spawn().unwrap();
        let workspace = place.root.join(format!("runner/attempts/{build}-1/workspace"));
        eventually("the phase runs", || workspace.join("built").exists()).await;
        child.kill().unwrap();
        child.wait().unwrap();
        assert_ne!(processes_of(place.root.to_str().unwrap()), [] as [String; 0], "the shim died with its server");
        let after = Place::open(&place.root, Level::Full).await;
        assert_eq!(after.attempts.on_disk(), [(build, 1)]);
        if adopt {
            fs::write(workspace.join("go"), "").unwrap();
            let built = after.run_to_end(build).await;
            assert_eq!(built.state, BuildState::ReadyToDeploy, "{:?}", built.attempts);
            assert_eq!(times_built(&after, build), 1);
        }
        // As for an attempt that was fenced meanwhile.
        after.close().await;
    }
}

#[tokio::test]
async fn a_phase_that_was_stopped_as_its_server_died_is_told_as_what_it_is() {
    needs_isolation!();
    let ends = [("canceled", BuildState::Canceled), ("disk", BuildState::BuildFailed), ("a stranger", BuildState::Queued)];
    for (why, expected) in ends {
        let place =
            Place::new("[build]\nrun = \"head -c 40M /dev/zero > fat; touch begun; exec sleep 600\"\ndisk = \"16MiB\"\n[package]\nrun = \"true\"\n")
                .await;
        let build = place.assign(&place.head());
        let mut child = child_command(&place, build, None).spawn().unwrap();
        let begun = place.root.join(format!("runner/attempts/{build}-1/workspace/begun"));
        eventually("the phase runs", || begun.exists()).await;
        // The server asks the phase to end, and dies at once.
        child.kill().unwrap();
        child.wait().unwrap();
        let shim = place.root.join(format!("runner/attempts/{build}-1/log/002-build"));
        let process = swell_sandbox::shim::read_process(&shim, "shim.pid").unwrap().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.pid), nix::sys::signal::Signal::SIGUSR1).unwrap();
        eventually("it ended", || shim.join("exit.json").exists()).await;
        if why != "disk" {
            fs::remove_file(begun.with_file_name("fat")).unwrap();
        }
        let after = Place::open(&place.root, Level::Full).await;
        if why == "canceled" {
            after.state.say(BuildAction::Cancel { build }).unwrap();
        }
        let (_stop, stopped) = watch::channel(why == "canceled");
        tokio::time::timeout(PATIENCE, after.attempts.run(after.job(build), stopped)).await.unwrap();
        let ended = after.state.build(build);
        assert_eq!(ended.state, expected, "{why}: {:?}", ended.attempts);
        if why == "disk" {
            assert!(failure(&ended).reason.contains("more than the 16MiB of [build].disk"), "{ended:?}");
        }
        after.close().await;
    }
}

#[tokio::test]
async fn a_clock_that_steps_while_a_phase_runs_costs_the_build_no_time() {
    needs_isolation!();
    let place = Place::new("[build]\nrun = \"true\"\ntimeout = \"5m\"\n[package]\nrun = \"echo x > $OUT/x\"\n").await;
    let build = place.assign(&place.head());
    let status = child_command(&place, build, Some("attempt::phase_ended")).status().unwrap();
    assert_eq!(status.signal(), Some(9));
    let shim = place.root.join(format!("runner/attempts/{build}-1/log/002-build"));
    let mut exit = swell_sandbox::shim::read_exit(&shim).unwrap().unwrap();
    exit.ended_at.0 += 86_400_000;
    fs::write(shim.join("exit.json"), serde_json::to_vec(&exit).unwrap()).unwrap();
    let after = Place::open(&place.root, Level::Full).await;
    let built = after.run_to_end(build).await;
    assert_eq!(built.state, BuildState::ReadyToDeploy, "{:?}", built.attempts);
    after.close().await;
}

#[tokio::test]
async fn a_killed_shim_loses_the_attempt() {
    needs_isolation!();
    let place = Place::new("[build]\nrun = \"echo begun; sleep 600\"\n[package]\nrun = \"true\"\n").await;
    let build = place.assign(&place.head());
    let (attempts, job) = (place.attempts.clone(), place.job(build));
    let run = tokio::spawn(async move { attempts.run(job, watch::channel(false).1).await });
    let shim = place.root.join(format!("runner/attempts/{build}-1/log/002-build/child.pid"));
    eventually("the phase runs", || shim.exists()).await;
    let pid: serde_json::Value = serde_json::from_slice(&fs::read(shim.with_file_name("shim.pid")).unwrap()).unwrap();
    let pid = nix::unistd::Pid::from_raw(pid["pid"].as_i64().unwrap() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
    let lost = place.state.build(build);
    assert!(
        matches!(&lost.attempts[0].end, Some(AttemptEnd::Lost(_))) && lost.state == BuildState::Queued,
        "{:?}",
        lost.attempts
    );
    place.close().await;
}

/// As an actor that is restarted again and again: the task is dropped at whatever it is doing, and the attempt taken up by the next.
#[tokio::test]
async fn an_attempt_that_is_dropped_anywhere_is_taken_up() {
    needs_isolation!();
    let place = Place::new(GOOD).await;
    let build = place.assign(&place.head());
    let mut patience = Duration::from_millis(1);
    let mut drops = 0;
    while place.state.build(build).live_attempt().is_some() {
        let (_stop, stopped) = watch::channel(false);
        if tokio::time::timeout(patience, place.attempts.run(place.job(build), stopped)).await.is_err() {
            drops += 1;
        }
        patience += Duration::from_millis(7);
        assert!(patience < PATIENCE, "never ended");
    }
    let built = place.state.build(build);
    assert_eq!(built.state, BuildState::ReadyToDeploy, "{:?}", built.attempts);
    assert!(drops > 3 && times_built(&place, build) == 1, "{drops}");
    let log = place.log_text(&built).await;
    assert_eq!((log.matches("compiling\n").count(), log.matches("café\n").count()), (1, 1), "{log}");
    place.close().await;
}
