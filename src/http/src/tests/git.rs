//! A push over HTTP with the real git: it is durable before git answers, and a ref's name then leads to its commit.

use std::path::Path;

use reqwest::StatusCode;
use serde_json::json;

use super::*;

/// Runs git in `dir` without the machine's own configuration; whether it succeeded, and what it said.
async fn git(dir: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = tokio::process::Command::new("git");
    command.current_dir(dir).args(["-c", "user.name=ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"]);
    command.args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
    let output = tokio::time::timeout(SOON, command.kill_on_drop(true).output()).await.unwrap().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap().trim().to_owned())
}

async fn ok(dir: &Path, arguments: &[&str]) -> String {
    let (success, said) = git(dir, arguments).await;
    assert!(success, "git {arguments:?}: {said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_commit_is_in_state_and_can_be_cloned_and_built() {
    let server = Server::start().await;
    server.done("/v1/repositories", json!({ "name": "shop" })).await;
    let url = |role: Role| server.base.replace("http://", &format!("http://ada:{}@", server.token(role))) + "/git/shop.git";
    let work = server.dir.path().join("work");
    std::fs::create_dir(&work).unwrap();
    ok(&work, &["init", "-q"]).await;
    std::fs::write(work.join("swell.toml"), "[build]\nrun = \"make\"\n").unwrap();
    ok(&work, &["add", "."]).await;
    ok(&work, &["commit", "-q", "-m", "first"]).await;
    let commit = ok(&work, &["rev-parse", "HEAD"]).await;

    let (pushed, _) = git(&work, &["push", "-q", &url(Role::Viewer), "HEAD:main"]).await;
    assert!(!pushed, "a viewer may not push");
    let said = ok(&work, &["push", &url(Role::Developer), "HEAD:main"]).await;
    assert!(said.contains("no pipeline builds this repository yet"), "{said}");
    let (_, shown) = server.get("/v1/repositories/shop").await;
    assert_eq!(shown["refs"][0]["name"], "refs/heads/main");
    assert_eq!(shown["refs"][0]["commit"], commit);
    let (_, events) = server.get("/v1/events?subject=repository/shop").await;
    assert!(events["items"].as_array().unwrap().iter().any(|event| event["by"] == "developer:ada"), "{events}");

    ok(server.dir.path(), &["clone", "-q", &url(Role::Viewer), "copy"]).await;
    assert_eq!(ok(&server.dir.path().join("copy"), &["rev-parse", "HEAD"]).await, commit);

    server.done("/v1/pipelines", json!({ "name": "shop", "source": { "hosted": "shop" } })).await;
    let build = server.done("/v1/builds", json!({ "pipeline": "shop", "ref": "main" })).await;
    assert_eq!((&build["commit"], &build["git_ref"]), (&json!(commit), &json!("refs/heads/main")));
    let (status, body) = server.post("/v1/builds", json!({ "pipeline": "shop", "ref": "nowhere" })).await;
    assert_problem(status, &body, "no_ref");
    assert_eq!(status, StatusCode::NOT_FOUND);
}
