//! Every command, run against a scripted server: with `--json`, it prints one JSON object and nothing else.

use std::{collections::BTreeSet, path::Path};

use serde_json::{Value, json};

use super::{
    fake::{Fake, Reply, Seen, typed, typed_with},
    tree::leaves,
};
use crate::Exit;

/// An artifact's digest.
const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn rollout() -> Value {
    json!({
        "id": "r7", "pipeline": "shop", "environment": "production", "release": "shop@12", "stable": "shop@11", "purpose": "deploy",
        "state": "deployed", "ended": true, "total": 1, "created_at": 1000, "ended_at": 2000,
    })
}

fn build() -> Value {
    json!({
        "id": "b3", "pipeline": "shop", "commit": "0123456789012345678901234567890123456789", "git_ref": "refs/heads/main",
        "state": "ready-to-deploy", "ended": true, "attempt_count": 1, "release": "shop@12", "created_at": 1000, "ended_at": 2000,
        "attempts": [{ "number": 1, "runner": "r1", "end": "succeeded" }],
    })
}

fn one(name: &str) -> Value {
    json!({ "items": [{ "name": name, "source": { "hosted": "shop" }, "path": "/git/shop" }], "next": null })
}

/// A server on which every request succeeds.
pub fn fine(seen: &Seen) -> Reply {
    let parts: Vec<&str> = seen.path.trim_start_matches('/').split('/').collect();
    let event =
        json!({ "seq": "4.0", "at": 1, "by": "developer:ada", "subject": "build/b3", "kind": "build.queued", "to": "queued" });
    let value = match (seen.method.as_str(), parts.as_slice()) {
        ("GET", ["v1", "whoami"]) => json!({ "role": "developer", "name": "ada" }),
        ("GET", ["v1", "cluster"]) => {
            json!({ "server": 1, "leader": 1, "last_event": "9.0", "runners": 1, "version": env!("CARGO_PKG_VERSION") })
        }
        ("GET", ["readyz"]) => json!({ "ready": true, "checks": [{ "name": "leader", "ok": true, "detail": "server 1" }] }),
        ("GET", ["v1", "events"]) if seen.headers.get("accept").is_some_and(|kind| kind.contains("event-stream")) => {
            return Reply::Stream(vec![format!("id: 4.0\nevent: event\ndata: {event}\n\n")], true);
        }
        ("GET", ["v1", "events"]) => json!({ "items": [event], "next": null }),
        ("GET", ["v1", "builds", _, "log"]) => {
            let line =
                |n: u64| json!({ "start": n, "end": n + 1, "phase": "build", "text": format!("line {n}\n") }).to_string() + "\n";
            return Reply::Stream(vec![line(0), line(1)], false);
        }
        (_, ["v1", "builds"]) if seen.method == "GET" => json!({ "items": [build()], "next": null }),
        (_, ["v1", "rollouts"]) if seen.method == "GET" => json!({ "items": [rollout()], "next": null }),
        (_, ["v1", "builds", ..] | ["v1", "pipelines", _, "artifacts"]) => build(),
        (_, ["v1", "rollouts" | "rollbacks", ..]) => rollout(),
        (_, ["v1", "plans"]) => json!({ "release": "shop@12", "stable": "shop@12", "environment": "production" }),
        (_, ["v1", "why", _]) => json!({ "id": "r7", "summary": "r7 is deployed", "rollout": rollout(), "events": [event] }),
        (_, ["v1", "releases", id]) => json!({ "id": id, "commit": id, "file": {} }),
        ("GET", ["v1", "artifacts"]) => json!({ "items": [{ "digest": DIGEST }], "next": null }),
        (_, ["v1", "artifacts", digest]) => json!({ "digest": digest }),
        (_, ["v1", "environments", _, "deployments"]) => {
            json!({ "items": [{ "environment": "production", "pipeline": "shop", "stable": "shop@12" }], "next": null })
        }
        ("GET", ["v1", "environments"]) => one("production"),
        ("GET", ["v1", "targets" | "pipelines" | "repositories"]) => one("shop"),
        ("DELETE", _) => return Reply::Json(204, Value::Null),
        _ => json!({ "name": "shop", "path": "/git/shop", "source": { "hosted": "shop" } }),
    };
    Reply::Json(200, value)
}

/// Arguments for each command; `@` stands for a folder of the test.
const RUNS: &[&[&str]] = &[
    &["init", "--file", "@/new.toml"],
    &["validate", "@/swell.toml"],
    &["schema"],
    &["plan", "shop"],
    &["build", "shop"],
    &["deploy", "shop"],
    &["rollback", "shop"],
    &["promote", "r7"],
    &["pause", "r7"],
    &["resume", "r7"],
    &["abort", "r7"],
    &["abort", "b3"],
    &["retry", "b3"],
    &["status"],
    &["status", "r7"],
    &["status", "b3"],
    &["status", "shop@12"],
    &["status", "shop"],
    &["logs", "b3"],
    &["logs", "r7"],
    &["history"],
    &["why", "r7"],
    &["diff", "shop@11", "12"],
    &["events"],
    &["audit"],
    &["pipeline", "create", "shop", "--repo", "shop"],
    &["pipeline", "ls"],
    &["pipeline", "show", "shop"],
    &["pipeline", "rm", "shop", "--yes"],
    &["repo", "create", "shop"],
    &["repo", "ls"],
    &["repo", "show", "shop"],
    &["artifact", "push", "shop", "@", "--commit", "0123456789012345678901234567890123456789", "--file", "@/swell.toml"],
    &["artifact", "ls"],
    &["artifact", "show", "aaaa"],
    &["fleet", "ls"],
    &["fleet", "show", "web-1"],
    &["fleet", "cordon", "web-1", "--why", "disk"],
    &["fleet", "uncordon", "web-1"],
    &["env", "create", "production", "--select", "env=production", "--least-bake", "5m", "--first-wave-max", "10%"],
    &["env", "ls"],
    &["env", "show", "production"],
    &["env", "freeze", "production", "--why", "audit"],
    &["env", "unfreeze", "production"],
    &["env", "clear", "production", "shop@12"],
    &["cluster", "status"],
    &["login", "--token-file", "@/token"],
    &["whoami"],
    &["doctor"],
    &["config", "show", "--origin"],
    &["version"],
];

/// Roles print no result; the output of `completion` is for a shell.
const WITHOUT_RESULT: &[&str] = &["dev", "server", "runner", "agent", "gateway", "completion"];

fn prepare(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(folder.join("swell.toml"), "[service.app]\ncommand = [\"bin/app\"]\n").unwrap();
    std::fs::write(folder.join("token"), "swell_developer_1\n").unwrap();
    std::fs::set_permissions(folder.join("token"), std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn filled(run: &[&str], folder: &Path) -> Vec<String> {
    run.iter()
        .map(|word| word.replace('@', "\0").replace("\0/", &format!("{}/", folder.display())))
        .map(|word| if word == "\0" { folder.display().to_string() } else { word.replace('\0', "@") })
        .collect()
}

#[tokio::test]
async fn every_command_prints_text_and_with_json_one_object() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().display().to_string();
    let server = Fake::start(fine).await;
    let mut covered = BTreeSet::new();
    let all = leaves();
    for run in RUNS {
        prepare(folder.path());
        for json in [true, false] {
            std::fs::remove_file(folder.path().join("new.toml")).ok();
            let words = filled(run, folder.path());
            let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
            if json {
                words.push("--json");
            }
            let vars = [("SWELL_TOKEN", "swell_developer_1"), ("XDG_CONFIG_HOME", home.as_str()), ("SWELL_TOKEN_FILE", "")];
            let said = typed_with(&server.addr, &words, &vars).run().await;
            assert_eq!(said.exit, Exit::Done, "{words:?}: {said:?}");
            assert!(!said.out.is_empty(), "{words:?} prints no result");
            if json {
                assert!(said.json().is_object(), "{words:?}: {}", said.out);
            }
            assert!(
                !said.out.contains('\u{1b}') && !said.err.contains('\u{1b}'),
                "{words:?} must not use color without a terminal"
            );
        }
        let leaf = all.iter().find(|leaf| leaf.split(' ').eq(run.iter().take(leaf.split(' ').count()).copied()));
        covered.extend(leaf.cloned());
    }
    covered.extend(WITHOUT_RESULT.iter().map(|leaf| (*leaf).to_owned()));
    let missing: Vec<_> = all.difference(&covered).collect();
    assert!(missing.is_empty(), "add a run for each of {missing:?}");
}

#[tokio::test]
async fn watch_with_json_prints_object_per_line_and_result_last() {
    let server = Fake::start(fine).await;
    for words in [&["status", "r7", "--watch", "--json"][..], &["logs", "b3", "-f", "--json"]] {
        let said = typed(&server.addr, words).run().await;
        let lines = said.json_lines();
        assert!(lines.len() > 1, "{words:?}: {}", said.out);
        let (last, before) = lines.split_last().unwrap();
        assert_eq!((&last["type"], &last["exit"]), (&json!("result"), &json!(0)));
        assert!(before.iter().all(|line| line["type"].is_string() && line["type"] != "result"));
    }
    let running = typed(&server.addr, &["events", "-f", "--json"]);
    running.context.interrupt.press();
    let said = running.run().await;
    assert_eq!(said.json_lines().last().unwrap()["type"], "result");
}

#[tokio::test]
async fn error_is_json_with_json_flag() {
    let problem = json!({ "code": "held", "detail": "production is held", "hint": "swell abort r7", "holder": "rollout/r7" });
    let server = Fake::start(move |_| Reply::Json(409, problem.clone())).await;
    let said = typed(&server.addr, &["deploy", "shop", "--env", "production", "--json"]).run().await;
    assert_eq!(said.exit, Exit::Conflict);
    let error = &said.json()["error"];
    assert_eq!((&error["code"], &error["holder"], &error["exit"]), (&json!("held"), &json!("rollout/r7"), &json!(7)));
    let said = typed(&server.addr, &["deploy", "shop", "--env", "production"]).run().await;
    assert!(said.out.is_empty() && said.err.contains("held by: rollout/r7"), "{said:?}");
}
