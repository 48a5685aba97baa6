//! Bad input: each gets a clear error that says what to do, the right exit code, and loses nothing.

use crate::{
    harness::{Dev, Repo, example, isolation_is_here, text},
    push::cluster,
};

#[test]
fn a_pipeline_file_is_refused_at_the_line_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("[build]\nrun = \"make\"\nmemoy = \"1GiB\"\n", "swell.toml:3", "memory"),
        ("[build]\nrun = \"make\"\nmemory = 5\n", "swell.toml:3", "2GiB"),
        ("[service.web]\ncommand = [\"x\"]\n[deploy.production]\nwaves = [\"50%\", \"10%\"]\n", "swell.toml:4", "grow"),
    ];
    for (file, line, hint) in cases {
        std::fs::write(folder.path().join("swell.toml"), file).unwrap();
        let output = std::process::Command::new(crate::harness::SWELL)
            .args(["validate", "swell.toml"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(line) && said.contains(hint), "it must name {line} and suggest {hint}: {said}");
    }
}

#[test]
fn a_pushed_file_that_is_wrong_fails_its_build_with_the_same_words() {
    if !isolation_is_here() {
        return;
    }
    let (dev, repo) = cluster(1);
    repo.write("swell.toml", "[build]\nrun = \"make\"\nmemoy = \"1GiB\"\n").commit("a typo");
    repo.push(&dev, "hello");
    let build = dev.ended_build(&dev.newest_build("hello", 0));
    assert_eq!(build["state"], "build-failed", "{build:#}");
    assert!(build.to_string().contains("memory"), "the right key is suggested: {build:#}");
}

#[test]
fn what_does_not_exist_is_said_to_be_so() {
    if !isolation_is_here() {
        return;
    }
    let (dev, _) = cluster(1);
    let missing = dev.folder.path().join("no-such-repository");
    dev.ok(&["pipeline", "create", "elsewhere", "--url", &missing.to_string_lossy()]);
    let said = dev.fails(&["build", "elsewhere", "--ref", "main"], 9);
    assert!(said.contains("no-such-repository"), "{said}");
    let said = dev.fails(&["build", "nothing", "--ref", "main"], 2);
    assert!(said.contains("there is no pipeline/nothing") && said.contains("swell pipeline"), "{said}");
    let said = dev.fails(&["status", "r99"], 2);
    assert!(said.contains("r99"), "{said}");
    assert!(dev.fails(&["stauts"], 2).contains("status"), "a typo is corrected");
}

#[test]
fn a_ref_that_is_deleted_while_it_builds_does_not_stop_the_build() {
    if !isolation_is_here() {
        return;
    }
    let (dev, repo) = cluster(1);
    repo.push(&dev, "hello");
    dev.ended_rollout("hello", 0);
    repo.git(&["checkout", "--quiet", "-b", "short-lived"]);
    repo.write("VERSION", "short\n").commit("on a branch");
    let url = format!("http://ada:{}@{}/git/hello", dev.token("developer"), dev.api);
    repo.git(&["push", &url, "short-lived"]);
    let build = dev.newest_build("hello", 1);
    repo.git(&["push", &url, "--delete", "short-lived"]);
    let build = dev.ended_build(&build);
    assert_eq!(build["state"], "ready-to-deploy", "the commit is kept: {build:#}");
}

#[test]
fn a_port_that_another_program_has_fails_the_target_and_names_the_port() {
    if !isolation_is_here() {
        return;
    }
    let dev = Dev::start(1);
    dev.ok(&["env", "create", "production"]);
    dev.ok(&["repo", "create", "hello"]);
    dev.ok(&["pipeline", "create", "hello", "--repo", "hello"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let repo = Repo::of(dev.folder.path(), "hello-work", &example("hello"));
    let file = std::fs::read_to_string(repo.path.join("swell.toml")).unwrap();
    let file = file.replace("http = \"auto\"", &format!("http = {port}")).replace("start = \"beside\"", "start = \"in-place\"");
    repo.write("swell.toml", &file).commit("a fixed port");
    repo.push(&dev, "hello");
    let rollout = dev.ended_rollout("hello", 0);
    assert_eq!(rollout["state"], "rolled-back", "{rollout:#}");
    let failure = rollout["failures"][0].to_string();
    assert!(failure.contains(&port.to_string()) && failure.contains("in use"), "{failure}: {rollout:#}");
}

#[test]
fn the_default_port_that_is_taken_is_told_with_the_way_out() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(crate::harness::SWELL)
        .args(["dev", "--listen", &taken.local_addr().unwrap().to_string()])
        .args(["--data".as_ref(), folder.path().as_os_str()])
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("is taken by another program") && said.contains("--listen"), "{said}");
}

#[test]
fn a_truncated_database_file_is_named_and_not_repaired() {
    if !isolation_is_here() {
        return;
    }
    let mut dev = Dev::start(1);
    dev.ok(&["repo", "create", "kept"]);
    dev.stop();
    let raft = dev.data().join("server/raft");
    let log = newest_with(&raft, &["log", "sst"]);
    let bytes = std::fs::read(&log).unwrap();
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    std::fs::write(&log, &damaged[..damaged.len() - damaged.len() / 4]).unwrap();
    let output = std::process::Command::new(crate::harness::SWELL)
        .args(["server", "--listen", &dev.api.to_string()])
        .args(["--data".as_ref(), dev.data().join("server").as_os_str()])
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "no other configuration would help: {said}");
    assert!(said.contains(&*raft.to_string_lossy()), "it names the folder: {said}");

    // Put back what was there: nothing is lost.
    std::fs::write(&log, bytes).unwrap();
    dev.resume();
    assert_eq!(dev.get("/v1/repositories/kept")["name"], "kept");
}

/// The largest file of one of these kinds.
fn newest_with(folder: &std::path::Path, endings: &[&str]) -> std::path::PathBuf {
    let files = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    let of_kind = files.filter(|path| path.extension().is_some_and(|ending| endings.iter().any(|wanted| ending == *wanted)));
    of_kind.max_by_key(|path| std::fs::metadata(path).map_or(0, |meta| meta.len())).unwrap()
}
