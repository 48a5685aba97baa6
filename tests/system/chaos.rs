//! kill -9 of server, agents, gateway and instances, at random moments of builds and rollouts and at every crash point on their way:
//! everything ends once, and nothing is left behind. `SEED=… SEEDS=1 cargo test --test system chaos` repeats one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    harness::{Conditions, Dev, isolation_is_here},
    push::{cluster_under, hurry},
};

/// How many seeds one run tries, each a push with its build and its rollout.
const SEEDS: u64 = 50;

/// A small generator (xorshift64*, Vigna 2016): a seed must lead to the same choices on every machine.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }
}

fn number_from(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Kills something, and says what.
fn kill_something(dev: &Dev, dice: &mut Dice) -> Option<String> {
    let (what, pid) = match dice.below(8) {
        0 | 1 => ("server".to_owned(), dev.role("server", "")),
        2 => ("gateway".to_owned(), dev.role("gateway", "")),
        3 | 4 => {
            let name = format!("web-{}", 1 + dice.below(3));
            (format!("agent {name}"), dev.role("agent", &name))
        }
        5 => {
            let shims = dev.processes(&["swell shim", &dev.data().to_string_lossy()]);
            ("shim".to_owned(), pick(&shims, dice))
        }
        _ => {
            let data = dev.data();
            let ours = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&data));
            let instances: Vec<i32> = dev.processes(&["bin/hello"]).into_iter().filter(ours).collect();
            ("instance".to_owned(), pick(&instances, dice))
        }
    };
    let pid = pid?;
    Dev::kill(pid);
    Some(what)
}

fn pick(from: &[i32], dice: &mut Dice) -> Option<i32> {
    if from.is_empty() { None } else { Some(from[dice.below(from.len() as u64) as usize]) }
}

/// Crash points, armed one after another: a file with a point's name makes the first process that passes it die there.
struct CrashPoints {
    folder: tempfile::TempDir,
    all: Vec<String>,
    armed: BTreeSet<String>,
}

impl CrashPoints {
    /// Every point on the way of a push, read from the source.
    fn new() -> Self {
        let source = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("src");
        let mut all = BTreeSet::new();
        collect_points(&source, &mut all);
        let of = ["agent::", "shim::", "runtime::", "attempt::", "unpack::", "fetch::", "store::", "storage::"];
        let all: Vec<String> = all.into_iter().filter(|point| of.iter().any(|prefix| point.starts_with(prefix))).collect();
        assert!(all.len() > 50, "crash points are not found in {}: {all:?}", source.display());
        Self { folder: tempfile::tempdir().unwrap(), all, armed: BTreeSet::new() }
    }

    fn conditions(&self) -> Conditions {
        let folder = self.folder.path().to_string_lossy().into_owned();
        Conditions { env: vec![("SWELL_CRASH_DIR", folder)], ..Conditions::default() }
    }

    fn file(&self, point: &str) -> PathBuf {
        self.folder.path().join(point)
    }

    /// Arms the two points whose turn it is. They stay armed until they are passed.
    fn arm(&mut self, turn: u64) {
        for which in [2 * turn, 2 * turn + 1] {
            let point = self.all[which as usize % self.all.len()].clone();
            if self.armed.insert(point.clone()) {
                std::fs::write(self.file(&point), "").unwrap();
            }
        }
    }

    /// The points that were armed, and nobody died at.
    fn not_passed(&self) -> Vec<&str> {
        self.armed.iter().filter(|point| self.file(point).exists()).map(String::as_str).collect()
    }
}

fn collect_points(folder: &Path, points: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_points(&path, points);
        } else {
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text.split("swell_system::crash::point(\"").skip(1).filter_map(|rest| rest.split('"').next());
            points.extend(names.map(str::to_owned));
        }
    }
}

/// Points that so few pushes do not reach: snapshots are taken, and the log is let go, after thousands of entries, and are installed
/// from other servers. `raft` and `storage` try them.
const OFF_THE_WAY: [&str; 6] = [
    "storage::after_install",
    "storage::after_snapshot",
    "storage::after_state_sync",
    "storage::before_install",
    "storage::before_snapshot",
    "storage::before_state_sync",
];

#[test]
fn whatever_is_killed_everything_ends_once_and_nothing_is_left_behind() {
    if !isolation_is_here() {
        return;
    }
    let (first, seeds) = (number_from("SEED", 1), number_from("SEEDS", SEEDS));
    let mut points = CrashPoints::new();
    let (mut dev, repo) = cluster_under(3, points.conditions());
    hurry(&repo);
    let file = std::fs::read_to_string(repo.path.join("swell.toml")).unwrap();
    repo.write("swell.toml", &file.replace("waves = [1, \"50%\", \"100%\"]", "waves = [1, \"100%\"]")).commit("fewer waves");
    repo.push(&dev, "hello");
    assert_eq!(dev.ended_rollout("hello", 0)["state"], "deployed");

    let mut killed = BTreeMap::<String, u32>::new();
    let (mut builds, mut rollouts) = (1, 1);
    for seed in first..first + seeds {
        let mut dice = Dice::new(seed);
        // Every tenth version is bad, so that what happens on the way back is on the way, too.
        let bad = seed % 10 == 9;
        repo.write("VERSION", &format!("{seed}\n"));
        if bad {
            repo.write("BROKEN", "");
        } else {
            std::fs::remove_file(repo.path.join("BROKEN")).ok();
        }
        repo.commit("another version");
        points.arm(seed);
        repo.push_until_taken(&dev, "hello");
        for _ in 0..1 + dice.below(3) {
            let moment = Instant::now() + Duration::from_millis(dice.below(4000));
            while Instant::now() < moment {
                std::thread::sleep(Duration::from_millis(5));
            }
            if let Some(what) = kill_something(&dev, &mut dice) {
                *killed.entry(what.split(' ').next().unwrap().to_owned()).or_default() += 1;
            }
        }
        let build = dev.ended_build(&dev.newest_build("hello", builds));
        builds += 1;
        assert_eq!(build["state"], "ready-to-deploy", "seed {seed}: {build:#}");
        let rollout = dev.ended_rollout("hello", rollouts);
        rollouts += 1;
        // A canary whose instance was killed may be judged bad: then it must be back, and the next push goes on from there.
        let state = rollout["state"].as_str().unwrap();
        let ends = if bad { &["rolled-back"][..] } else { &["deployed", "rolled-back"] };
        assert!(ends.contains(&state), "seed {seed}: {rollout:#}");
        let count = |path: &str| dev.get(path)["items"].as_array().unwrap().len();
        assert_eq!(count("/v1/builds?pipeline=hello&limit=500"), builds, "seed {seed}: one build a push");
        assert_eq!(count("/v1/rollouts?pipeline=hello&limit=500"), rollouts, "seed {seed}: one rollout a build");
        let wanted = if state == "deployed" { rollout["release"].clone() } else { rollout["stable"].clone() };
        dev.wait_until(&format!("seed {seed}: every target runs {wanted}"), |dev| {
            (1..=3).all(|number| {
                let observed = dev.get(&format!("/v1/targets/web-{number}"))["observations"][0].clone();
                observed["release"] == wanted && observed["progress"] == "healthy"
            })
        });
    }
    let (armed, not_passed) = (points.armed.len(), points.not_passed());
    eprintln!("chaos: {seeds} seeds from {first}, killed {killed:?}, and at {} of {armed} points", armed - not_passed.len());
    if seeds >= SEEDS {
        for kind in ["server", "gateway", "agent", "shim", "instance"] {
            assert!(killed.contains_key(kind), "no {kind} was killed: {killed:?}");
        }
        assert_eq!(not_passed, OFF_THE_WAY, "nobody died at these points");
    }
    dev.stop();
    assert_eq!(dev.left_behind(), Vec::<String>::new());
}
