//! From `git push` to a fleet, and back: what the product is for.

use serde_json::Value;

use crate::{
    harness::{Conditions, Dev, Repo, example, isolation_is_here},
    traffic::Traffic,
};

pub const HOST: &str = "web.hello.production";

/// A cluster with `hello` registered and an environment for it.
pub fn cluster(agents: u16) -> (Dev, Repo) {
    cluster_under(agents, Conditions::default())
}

/// The same under other conditions.
pub fn cluster_under(agents: u16, conditions: Conditions) -> (Dev, Repo) {
    let dev = Dev::start_under(agents, conditions);
    dev.ok(&["env", "create", "production"]);
    dev.ok(&["repo", "create", "hello"]);
    dev.ok(&["pipeline", "create", "hello", "--repo", "hello"]);
    let repo = Repo::of(dev.folder.path(), "hello-work", &example("hello"));
    (dev, repo)
}

/// Makes a rollout of the sample take seconds.
pub fn hurry(repo: &Repo) {
    let file = std::fs::read_to_string(repo.path.join("swell.toml")).unwrap();
    let quick = file
        .replace("bake = \"5s\"", "bake = \"1s\"")
        .replace("start_timeout = \"15s\"", "start_timeout = \"15s\", min_healthy = \"1s\"");
    assert!(quick.contains("bake = \"1s\"") && quick.contains("min_healthy = \"1s\""));
    repo.write("swell.toml", &quick).commit("quicker");
}

fn sizes(rollout: &Value) -> Vec<u64> {
    rollout["waves"].as_array().unwrap().iter().map(|wave| wave["targets"]["count"].as_u64().unwrap()).collect()
}

#[test]
fn a_push_reaches_the_fleet_and_a_bad_push_is_turned_back_without_a_failed_request() {
    if !isolation_is_here() {
        return;
    }
    let (mut dev, repo) = cluster(6);
    let said = repo.push(&dev, "hello");
    assert!(said.contains("pipeline hello looks at it"), "{said}");

    // The first release: nothing ran before.
    let build = dev.ended_build(&dev.newest_build("hello", 0));
    assert_eq!(build["state"], "ready-to-deploy", "{build:#}");
    assert!(build["attempts"][0]["unisolated"].is_null(), "the build is isolated: {build:#}");
    let first = dev.ended_rollout("hello", 0);
    assert_eq!(first["state"], "deployed", "{first:#}");
    assert_eq!(sizes(&first), [1, 2, 3], "{first:#}");
    dev.wait_until("the gateway routes to the service", |dev| {
        matches!(crate::traffic::ask(dev.gateway, HOST, "/"), Ok((200, _)))
    });

    // The second, while users ask.
    let traffic = Traffic::start(dev.gateway, HOST, 4);
    repo.write("VERSION", "2\n").commit("the second version");
    repo.push(&dev, "hello");
    let second = dev.ended_rollout("hello", 1);
    assert_eq!(second["state"], "deployed", "{second:#}");
    let verdicts: Vec<&str> = second["verdicts"].as_array().unwrap().iter().map(|v| v["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["pass"; 5], "a convergence for each wave and a bake for all but the last: {second:#}");

    // A bad one: its health check fails. It is stopped at its first wave and goes back by itself.
    repo.write("BROKEN", "").commit("a bad idea");
    repo.push(&dev, "hello");
    let bad = dev.ended_rollout("hello", 2);
    assert_eq!(bad["state"], "rolled-back", "{bad:#}");
    assert_eq!(bad["wave"], 1, "it never left its first wave: {bad:#}");
    let failure = &bad["failures"][0];
    assert!(!failure["output"].as_str().unwrap_or_default().is_empty(), "the instance's last output is shown: {bad:#}");
    let why = dev.ok(&["why", bad["id"].as_str().unwrap()]);
    assert!(why.contains("500"), "what the probe answered is shown: {why}");

    // The quarantined release cannot come back by accident.
    let refused = dev.fails(&["deploy", "hello", "--env", "production", "--release", bad["release"].as_str().unwrap()], 7);
    assert!(refused.contains("quarantined"), "{refused}");

    // Back to the first release by hand: nothing is fetched.
    let fetched_before = fetched_bytes(&dev);
    let rolled_back = dev.ok(&["rollback", "hello", "--why", "the second one is slow"]);
    assert!(rolled_back.contains("hello@1"), "it says which release it went back to: {rolled_back}");
    assert_eq!(fetched_bytes(&dev), fetched_before, "rolling back moves no bytes");

    let met = traffic.stop();
    assert!(met.failures.is_empty(), "of {} requests, {} failed: {:?}", met.requests(), met.failures.len(), met.failures.first());
    assert!(met.pages.len() >= 2, "users met both versions: {:?}", met.pages);
    dev.stop();
    assert_eq!(dev.left_behind(), Vec::<String>::new());
}

/// How many bytes of artifacts the server has given out so far.
fn fetched_bytes(dev: &Dev) -> String {
    let metrics = dev.get("/metrics");
    let lines = metrics.as_str().unwrap().lines();
    lines.filter(|line| line.starts_with("swell_artifact_bytes_served_total")).collect()
}

#[test]
fn the_same_commit_built_twice_gives_the_same_digest() {
    if !isolation_is_here() {
        return;
    }
    let (dev, repo) = cluster(1);
    repo.push(&dev, "hello");
    let first = dev.ended_build(&dev.newest_build("hello", 0));
    let output = dev.ok(&["--json", "build", "hello", "--ref", "main", "--again"]);
    let second = dev.ended_build(&dev.newest_build("hello", 1));
    assert_eq!(second["state"], "ready-to-deploy", "{output}\n{second:#}");
    assert!(first["artifact"].as_str().unwrap().starts_with("sha256:"));
    assert_eq!(first["artifact"], second["artifact"]);
}
