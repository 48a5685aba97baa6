//! A push until the first command of its build, beside what no one can leave out: checking out the commit with git and starting a
//! container, here runc. What is left beside our own container is our overhead: queue, scheduling, records.
//!
//! Both ends are stamped by the machine's clock: the server's when it takes the push, and the command itself, which prints the time.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use swell_model::principal::Role;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::{
    Setup,
    container::Place,
    process::{folder, installed, version},
    report::Report,
    sample::{Paired, ms},
    server::Server,
};

/// How often both are measured, after a few times that do not count.
const ROUNDS: usize = 15;
const WARM_UP: usize = 2;

/// Files of the repository, and bytes of each.
const FILES: usize = 200;
const FILE_BYTES: usize = 2000;

/// How long a build may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a build.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What the command prints before the time.
const MARK: &str = "began=";

const PIPELINE: &str = "shop";

pub async fn run(setup: &Setup, report: Report) -> Result<()> {
    let (git, runc) = (installed("git", "git")?, installed("runc", "runc")?);
    report.versions(&[("git", version(&git, &["--version"]).await?), ("runc", version(&runc, &["--version"]).await?)]);
    let folder = folder()?;
    let place = Place::new(setup, folder.path())?;
    let bundle = place.runc_bundle().await.context("laying out a container for runc")?;
    let server = Server::start_with(setup, &["--runner"]).await?;
    server.create_pipeline(PIPELINE).await?;
    let repository = folder.path().join("repository");
    create_repository(&git, &repository).await?;
    let url = format!("http://bench:{}@{}/git/{PIPELINE}", server.token(Role::Developer)?, server.listen);
    let (mut rounds, mut overheads) = (Vec::new(), Vec::new());
    for round in 0..setup.rounds(ROUNDS) + WARM_UP {
        fs::write(repository.join("round"), round.to_string())?;
        run_git(&git, &repository, &["add", "--all"]).await?;
        run_git(&git, &repository, &["commit", "--quiet", "--message", &format!("round {round}")]).await?;
        run_git(&git, &repository, &["push", "--quiet", &url, "main"]).await?;
        let ours = until_first_command(&server, round).await?;

        let began = Instant::now();
        let copy = folder.path().join("checkout");
        run_git(&git, &repository, &["clone", "--quiet", "--no-local", ".", &copy.to_string_lossy()]).await?;
        let checkout = ms(began.elapsed());
        fs::remove_dir_all(&copy)?;
        let theirs = ms(place.runc_once(&runc, &bundle, round).await?);
        let container = ms(place.swell_once(round).await?);
        if round >= WARM_UP {
            rounds.push(Paired { ours, peer: checkout + theirs });
            overheads.push(ours - checkout - container);
        }
    }
    let note = format!("git clone of {FILES} files and runc run true");
    report.compared("push accepted to first command", &rounds, "ms", &note)?;
    report.alone("the same less checkout and our container", &overheads, "ms", "goal: ≤ 100 ms")?;
    server.stop().await
}

async fn create_repository(git: &Path, repository: &Path) -> Result<()> {
    fs::create_dir(repository)?;
    let file = format!("[build]\nrun = \"echo {MARK}$(date +%s%3N)\"\n[package]\nrun = \"cp swell.toml $OUT\"\n");
    fs::write(repository.join("swell.toml"), file)?;
    for number in 0..FILES {
        fs::write(repository.join(format!("file-{number}")), format!("{number}\n").repeat(FILE_BYTES / 4))?;
    }
    run_git(git, repository, &["init", "--quiet", "--initial-branch=main"]).await
}

/// git without the user's own settings.
async fn run_git(git: &Path, folder: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(git);
    command.args(["-c", "user.name=Bench", "-c", "user.email=bench@example.org", "-c", "commit.gpgsign=false"]).args(arguments);
    command
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0");
    let output = command.kill_on_drop(true).output().await.context("failed to run git")?;
    let what = arguments.first().copied().unwrap_or_default();
    ensure!(output.status.success(), "git {what} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Milliseconds from when the newest build was asked for until its command ran; waits until it has ended.
async fn until_first_command(server: &Server, round: usize) -> Result<f64> {
    let mut connection = server.api()?.connect().await?;
    let deadline = Instant::now() + PATIENCE;
    let build = loop {
        let page = connection.json(Method::GET, &format!("/v1/builds?pipeline={PIPELINE}&limit=500"), None).await?;
        let builds = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        if builds.len() > round && builds.iter().all(|build| build["ended"] == true) {
            break builds.iter().max_by_key(|build| build["created_at"].as_u64()).cloned().unwrap_or_default();
        }
        ensure!(Instant::now() < deadline, "build {round} has not ended after {PATIENCE:?}: {page}");
        sleep(LOOK_EVERY).await;
    };
    ensure!(build["failure"] == json!(null), "a build failed: {build}");
    let id = build["id"].as_str().context("a build without an id")?;
    let (status, log) = connection.send(Method::GET, &format!("/v1/builds/{id}/log"), Bytes::new()).await?;
    ensure!(status.is_success(), "the log of {id} was refused with {status}");
    let began =
        began(&String::from_utf8_lossy(&log)).with_context(|| format!("the command of {id} did not print when it began"))?;
    let asked = build["created_at"].as_u64().context("a build without a time")?;
    Ok(began as f64 - asked as f64)
}

/// The time that the command printed, in milliseconds since 1970.
fn began(log: &str) -> Option<u64> {
    let texts = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["text"].as_str().map(str::to_owned));
    texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .find_map(|line| line.strip_prefix(MARK)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::began;

    #[test]
    fn time_is_found_in_the_command_s_output_and_not_in_the_script() {
        let log = "{\"text\":\"running echo began=$(date)\\n\"}\n{\"text\":\"began=1700000000123\\n\"}\n";
        assert_eq!(began(log), Some(1_700_000_000_123));
        assert_eq!(began(""), None);
    }
}
