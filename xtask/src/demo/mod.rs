//! `cargo xtask demo`: one push from commit to fleet under live traffic, then a bad one turned back.
//! It drives the product as a user would, through `swell` and `git`, and must not link it.

mod cluster;
mod placement;
mod repository;
mod story;
mod traffic;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use self::{
    cluster::{Cluster, ask},
    placement::Released,
    repository::Repository,
    story::Story,
    traffic::{Met, Traffic},
};
use crate::{
    Usage, product, setup,
    steps::{self, Steps},
};

/// What the command line asked for.
#[derive(Debug, Default, PartialEq)]
pub struct Options {
    /// The server's port; the peers' port is the next one. Unset: the product's default.
    pub port: Option<u16>,
    /// Leave everything running at the end, with the dashboard's address.
    pub keep: bool,
}

impl Options {
    /// Reads `[--port N] [--keep]`.
    pub fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match *argument {
                "--keep" => options.keep = true,
                "--port" => {
                    let port = arguments.next().and_then(|text| text.parse().ok()).filter(|port| *port > 0);
                    options.port = Some(port.context(Usage("`--port` needs a number from 1 to 65535".to_owned()))?);
                }
                other => return Err(Usage(format!("demo does not know `{other}`: it takes [--port N] [--keep]")).into()),
            }
        }
        Ok(options)
    }
}

/// Runs the demonstration.
pub fn run(options: &Options) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("set-up", || setup::run(setup::Purpose::Build))?;
    steps.step("build", || product::build().map(|_| ()))?;
    steps.step("show", || show(options))
}

/// The port that is used unless another is asked for: the product's own.
const PORT: u16 = 7400;

/// Six targets in two zones.
const AGENTS: u16 = 6;

/// By this name the gateway knows the sample's service.
const HOST: &str = "web.hello.production";

/// The scenes, in order.
fn show(options: &Options) -> Result<()> {
    let root = steps::root();
    let program = product::program()?;
    let folder = std::env::temp_dir().join(format!("groundswell-demo-{}", nix_uid()));
    let mut story = Story::default();

    let mut cluster = story.scene("a server with a runner, a gateway and six targets in two zones", || {
        let cluster = Cluster::start(&program, &folder, options.port.unwrap_or(PORT), AGENTS)?;
        cluster.ok(&["env", "create", "production"])?;
        cluster.ok(&["repo", "create", "hello"])?;
        cluster.ok(&["pipeline", "create", "hello", "--repo", "hello"])?;
        Ok(cluster)
    })?;
    let repository = Repository::create(&root.join("examples/hello"), &folder.join("hello"))?;
    let unisolated = isolation(&cluster);
    unisolated.iter().for_each(|line| println!("  !! {line}"));

    let first = story.scene("the first push: built, tested, rolled out in waves", || {
        repository.push(&cluster)?;
        expect(&mut cluster, "deployed", 0)
    })?;
    cluster.wait_until("the gateway routes", |cluster| Ok(ask(cluster.gateway, HOST, "/", "")?.0 == 200))?;

    let users = Traffic::start(cluster.gateway, HOST, 4);
    let second = story.scene("a second version, under live traffic", || {
        repository.write("VERSION", "2\n")?;
        repository.commit("the second version")?;
        repository.push(&cluster)?;
        expect(&mut cluster, "deployed", 1)
    })?;
    let bad = story.scene("a bad version: its health check fails", || {
        // A version of its own, so that its page would be told from the second's if a user ever met it.
        repository.write("VERSION", "3\n")?;
        repository.write("BROKEN", "")?;
        repository.commit("a bad idea")?;
        repository.push(&cluster)?;
        let bad = expect(&mut cluster, "rolled-back", 2)?;
        ensure!(bad["wave"] == 1, "it was stopped at its first wave");
        Ok(bad)
    })?;
    println!("{}", indent(&cluster.ok(&["why", bad["id"].as_str().unwrap_or_default()])?, 4));
    let served = bytes_served(&cluster)?;
    story.scene("back to the first version, by hand", || {
        println!("{}", indent(&cluster.ok(&["rollback", "hello", "--why", "the second one is slow"])?, 4));
        ensure!(bytes_served(&cluster)? == served, "the rollback moved bytes");
        Ok(())
    })?;
    let met = users.stop();
    story.tell(&met);
    let first_page = format!("hello {}", std::fs::read_to_string(root.join("examples/hello/VERSION"))?.trim());
    let versions = [(first_page, first), ("hello 2".to_owned(), second), ("hello 3".to_owned(), bad)];
    show_placement(&cluster, &versions, &met)?;
    unisolated.iter().for_each(|line| println!("  !! {line}"));
    ensure!(met.failures.is_empty(), "{} requests failed, the first: {}", met.failures.len(), met.failures[0]);

    if options.keep {
        println!("It runs on. To look around:\n");
        println!("  export SWELL_ADDR=http://{} SWELL_TOKEN={}", cluster.api, cluster.token("admin"));
        println!("  {} status", program.display());
        cluster.leave();
        return Ok(());
    }
    cluster.stop()?;
    println!(
        "Everything is stopped; `cargo xtask demo --keep` lets it run on. The log: {}",
        folder.join("swell-dev.log").display()
    );
    Ok(())
}

/// Prints what runs where, and which release answered the users. `versions` are pages and the rollouts that brought them.
fn show_placement(cluster: &Cluster, versions: &[(String, Value)], met: &Met) -> Result<()> {
    let mut released = Vec::new();
    for (page, rollout) in versions {
        let release = text(rollout, "release").to_owned();
        let artifact = text(&cluster.json(&["status", &release])?, "artifact").to_owned();
        let rollout = format!("{} {}", text(rollout, "id"), text(rollout, "state"));
        released.push(Released { release, artifact, rollout, page: page.clone() });
    }
    let fleet = cluster.json(&["fleet", "ls"])?;
    let names = fleet["items"].as_array().into_iter().flatten().map(|target| text(target, "name"));
    let targets = names.map(|name| cluster.json(&["fleet", "show", name])).collect::<Result<Vec<_>>>()?;
    let artifacts: BTreeMap<String, String> =
        released.iter().map(|released| (released.release.clone(), released.artifact.clone())).collect();
    println!("  What runs where\n\n{}\n", indent(&placement::what_runs_where(&targets, &artifacts).text(), 2));
    println!("  Which release answered the users\n\n{}\n", indent(&placement::who_answered(&released, met).text(), 2));
    Ok(())
}

/// Waits until the newest rollout, beyond `before` others, has ended as `state`; tells how it went.
fn expect(cluster: &mut Cluster, state: &str, before: usize) -> Result<Value> {
    let mut last = String::new();
    cluster.wait_until(&format!("rollout {} has ended", before + 1), |cluster| {
        let builds = cluster.get("/v1/builds?limit=1")?;
        let build = &builds["items"][0];
        let rollouts = cluster.get("/v1/rollouts?limit=100")?;
        let rollouts = rollouts["items"].as_array().cloned().unwrap_or_default();
        let now = match rollouts.first().filter(|_| rollouts.len() > before) {
            Some(rollout) => format!("rollout {}: {}{}", text(rollout, "id"), text(rollout, "state"), wave(rollout)),
            None if build.is_null() => String::new(),
            None => format!("build {}: {}", text(build, "id"), text(build, "state")),
        };
        if now != last {
            println!("    {now}");
            last = now;
        }
        if rollouts.len() <= before && build["ended"] == true && build["state"] != "ready-to-deploy" {
            bail!("the build ended as {}", text(build, "state"));
        }
        Ok(rollouts.len() > before && rollouts[0]["ended"] == true)
    })?;
    let rollouts = cluster.get("/v1/rollouts?limit=1")?;
    let rollout = rollouts["items"][0].clone();
    ensure!(rollout["state"] == state, "the rollout ended as {} and not as {state}:\n{rollout:#}", text(&rollout, "state"));
    Ok(rollout)
}

fn wave(rollout: &Value) -> String {
    let counts = &rollout["counts"];
    let healthy = counts["healthy"].as_u64().unwrap_or_default();
    format!(", {healthy} of {} targets healthy", rollout["total"].as_u64().unwrap_or_default())
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// What to say loudly where builds and services are not isolated on this machine: that, why, and what to change.
fn isolation(cluster: &Cluster) -> Vec<String> {
    let log = std::fs::read_to_string(cluster.folder.join("swell-dev.log")).unwrap_or_default();
    let Some(why) = log.lines().find_map(|line| line.split_once("ARE NOT ISOLATED").map(|(_, why)| why)) else {
        return Vec::new();
    };
    let why = why.split_once("why=").map_or(why, |(_, why)| why).trim_matches('"');
    let mut lines = vec![
        "NOT ISOLATED: builds and services run here as plain processes of this user, and can read and change what it can."
            .to_owned(),
        format!("Why: {why}"),
    ];
    // The server may have a token or none: what counts here is what `doctor` says of the machine.
    let report = cluster.swell(&["--json", "doctor"]).map(|(_, text)| text).unwrap_or_default();
    let report: Value = serde_json::from_str(&report).unwrap_or_default();
    let failed = report["checks"].as_array().into_iter().flatten().filter(|check| check["ok"] == false);
    lines.extend(failed.map(|check| format!("To change that ({}): {}", text(check, "name"), text(check, "hint"))));
    lines
}

/// How many bytes of artifacts the server has given out.
fn bytes_served(cluster: &Cluster) -> Result<String> {
    let metrics = cluster.get("/metrics")?;
    let lines = metrics.as_str().unwrap_or_default().lines();
    Ok(lines.filter(|line| line.starts_with("swell_artifact_bytes_served_total")).collect())
}

fn indent(text: &str, spaces: usize) -> String {
    text.lines().map(|line| format!("{:spaces$}{line}\n", "")).collect::<String>().trim_end().to_owned()
}

/// Whose demonstration it is, so that two users of one machine do not meet.
fn nix_uid() -> String {
    std::env::var("USER").ok().filter(|user| user.chars().all(|c| c.is_ascii_alphanumeric())).unwrap_or_else(|| "user".to_owned())
}
