//! Text output: tables, errors with suggestions, plans and rollbacks.

use serde_json::json;

use super::{
    fake::{Fake, Reply, typed, typed_with},
    leaves::fine,
};
use crate::Exit;

fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

#[tokio::test]
async fn overview_shows_releases_open_rollouts_and_builds() {
    let ago = now_ms() - 2 * 3_600_000 - 30_000;
    let server = Fake::start(move |seen| {
        Reply::Json(200, match seen.path.as_str() {
            "/v1/environments" => json!({ "items": [{ "name": "production" }], "next": null }),
            "/v1/environments/production/deployments" => json!({ "items": [
                {
                    "environment": "production", "pipeline": "shop", "stable": "shop@11", "rollout": "r7",
                    "history": [{ "release": "shop@11", "rollout": "r6", "end": "deployed", "at": ago }],
                    "quarantined": [{ "release": "shop@10" }],
                },
                { "environment": "production", "pipeline": "billing", "stable": "billing@3" },
            ] }),
            "/v1/rollouts" => json!({ "items": [
                { "id": "r7", "release": "shop@12", "state": "canary-check", "waits_for": "the bake: 40s of 5m" },
            ] }),
            _ => json!({ "items": [
                { "id": "b9", "pipeline": "shop", "commit": "0123456789012345", "state": "queued", "waits_for": "a runner", "created_at": ago },
            ] }),
        })
    })
    .await;
    let said = typed(&server.addr, &["status"]).run().await;
    insta::assert_snapshot!(said.out, @r"
    ENVIRONMENT  PIPELINE  RELEASE    ROLLOUT                                                      LAST ROLLOUT     QUARANTINED
    production   shop      shop@11    r7 canary-check to shop@12, waiting for the bake: 40s of 5m  deployed 2h ago  shop@10
    production   billing   billing@3  -                                                            -                -

    BUILD  PIPELINE  COMMIT        STATE   WAITING FOR  REQUESTED
    b9     shop      012345678901  queued  a runner     2h ago
    ");
    assert_eq!(server.seen_at("GET", "/v1/builds")[0].query, "state=open&limit=50");
}

#[tokio::test]
async fn history_lists_builds_and_rollouts_newest_first() {
    let now = now_ms();
    let server = Fake::start(move |seen| {
        Reply::Json(200, match seen.path.as_str() {
            "/v1/builds" => json!({ "items": [{
                "id": "b3", "pipeline": "shop", "commit": "0123456789012345", "git_ref": "refs/heads/main", "state": "ready-to-deploy",
                "release": "shop@12", "by": "developer:ada", "created_at": now - 7_230_000,
            }] }),
            _ => json!({ "items": [{
                "id": "r7", "pipeline": "shop", "environment": "production", "release": "shop@12", "purpose": "deploy",
                "state": "deployed", "by": "system:deploy", "created_at": now - 3_630_000,
            }] }),
        })
    })
    .await;
    let said = typed(&server.addr, &["history", "shop"]).run().await;
    insta::assert_snapshot!(said.out, @r"
    ID  AGE     ACTION                   STATE            RELEASE  REF/ENV     BY
    r7  1h ago  deploy shop              deployed         shop@12  production  system:deploy
    b3  2h ago  build shop 012345678901  ready-to-deploy  shop@12  main        developer:ada
    ");
}

#[tokio::test]
async fn plan_exit_code_tells_whether_something_would_change() {
    let server = Fake::start(|seen| match seen.path.as_str() {
        "/v1/plans" => {
            let stable = if seen.body["release"] == "shop@11" { "shop@11" } else { "shop@10" };
            Reply::Json(200, json!({ "release": "shop@11", "stable": stable, "environment": "production", "purpose": "deploy" }))
        }
        _ => fine(seen),
    })
    .await;
    assert_eq!(typed(&server.addr, &["plan", "shop"]).run().await.exit, Exit::Changes);
    assert_eq!(typed(&server.addr, &["plan", "shop", "--release", "11"]).run().await.exit, Exit::Done);
}

#[tokio::test]
async fn rollback_names_release_before_start_and_refuses_ambiguous_environment() {
    let server = Fake::start(|seen| match (seen.method.as_str(), seen.path.as_str()) {
        (_, "/v1/plans") => Reply::Json(200, json!({ "release": "shop@11", "stable": "shop@12", "environment": "production" })),
        _ => fine(seen),
    })
    .await;
    let said = typed(&server.addr, &["rollback", "shop", "--why", "errors"]).run().await;
    assert!(said.err.starts_with("rolling back production from shop@12 to shop@11\n"), "{}", said.err);
    let asked = &server.seen_at("POST", "/v1/rollbacks")[0].body;
    assert_eq!(*asked, json!({ "pipeline": "shop", "environment": "production", "to": "shop@11", "why": "errors" }));

    let ambiguous = json!({
        "status": 409, "code": "ambiguous", "detail": "shop runs in 2 environments: production, staging",
        "hint": "say which: --env production", "choices": ["production", "staging"],
    });
    let server = Fake::start(move |seen| match seen.path.as_str() {
        "/v1/plans" => Reply::Json(409, ambiguous.clone()),
        _ => fine(seen),
    })
    .await;
    for words in [&["rollback", "shop"][..], &["plan", "shop", "--rollback"]] {
        let said = typed(&server.addr, words).run().await;
        assert_eq!(said.exit, Exit::Usage);
        insta::allow_duplicates! {
            insta::assert_snapshot!(said.err, @r"
            error[ambiguous]: shop runs in 2 environments: production, staging
              hint: say which: --env production
            ");
        }
    }
    assert!(server.seen_at("POST", "/v1/rollbacks").is_empty());
    assert!(server.seen().iter().all(|seen| seen.path == "/v1/plans"), "the server knows where the pipeline runs");
}

#[tokio::test]
async fn unknown_name_is_refused_with_suggestion_of_same_kind() {
    let server = Fake::start(|seen| match (seen.method.as_str(), seen.path.as_str()) {
        ("GET", "/v1/pipelines") => Reply::Json(200, json!({ "items": [{ "name": "shop" }, { "name": "billing" }] })),
        ("GET", "/v1/builds" | "/v1/rollouts") => Reply::Json(200, json!({ "items": [] })),
        (_, "/v1/rollouts") => {
            let detail = "there is no release/shop@99";
            let problem =
                json!({ "code": "not_found", "detail": detail, "hint": "`swell history`", "subject": "release/shop@99" });
            Reply::Json(404, problem)
        }
        _ => {
            let detail = "there is no pipeline/shpo";
            let problem =
                json!({ "code": "not_found", "detail": detail, "hint": "`swell pipeline ls`", "subject": "pipeline/shpo" });
            Reply::Json(404, problem)
        }
    })
    .await;
    let said = typed(&server.addr, &["deploy", "shop", "--env", "shop", "--release", "99"]).run().await;
    assert!(!said.err.contains("did you mean"), "a release is not answered with a pipeline: {}", said.err);
    for words in [&["history", "shpo"][..], &["plan", "shpo", "--env", "production"], &["rollback", "shpo"]] {
        let said = typed(&server.addr, words).run().await;
        assert_eq!(said.exit, Exit::Usage, "{words:?}");
        assert!(said.err.contains("did you mean `shop`?"), "{words:?}: {}", said.err);
    }
    let said = typed(&server.addr, &["build", "shpo"]).run().await;
    assert_eq!(said.exit, Exit::Usage);
    insta::assert_snapshot!(said.err, @r"
    error[not_found]: there is no pipeline/shpo
      hint: did you mean `shop`?
    ");
}

#[tokio::test]
async fn strict_validation_does_not_call_file_with_unsupported_settings_valid() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("swell.toml");
    std::fs::write(&file, "[test]\nrun = \"make check\"\nreports = [\"junit.xml\"]\n").unwrap();
    let validate = async |flags: &[&str]| {
        let words = [&["validate", file.to_str().unwrap()], flags].concat();
        typed("http://127.0.0.1:9", &words).run().await
    };
    let said = validate(&[]).await;
    assert_eq!(said.exit, Exit::Done);
    assert!(said.out.contains("is valid; this version ignores 1 setting"), "{}", said.out);
    let strict = validate(&["--strict"]).await;
    assert_eq!(strict.exit, Exit::Usage);
    assert!(strict.out.contains("1 unsupported setting") && !strict.out.contains("is valid"), "{}", strict.out);
}

#[tokio::test]
async fn freeze_without_reason_is_refused_with_command_to_run() {
    let server = Fake::start(fine).await;
    let said = typed(&server.addr, &["env", "freeze", "staging"]).run().await;
    assert_eq!(said.exit, Exit::Usage);
    assert!(said.err.contains("--why is required") && said.err.contains("`swell env freeze staging --why TEXT`"), "{}", said.err);
    assert!(server.seen_at("POST", "/v1/environments/staging/freeze").is_empty());
}

#[tokio::test]
async fn build_that_is_being_canceled_says_so() {
    let server = Fake::start(|_| {
        let build =
            json!({ "id": "b54", "pipeline": "shop", "state": "building", "cancel_asked": true, "waits_for": "the runner" });
        Reply::Json(200, build)
    })
    .await;
    let said = typed(&server.addr, &["abort", "b54"]).run().await;
    assert!(said.out.contains("b54") && said.out.contains("is being canceled; waiting for the runner"), "{}", said.out);
}

#[tokio::test]
async fn invalid_pipeline_file_is_shown_with_caret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("swell.toml");
    std::fs::write(&file, "[build]\nmemroy = \"4GiB\"\n").unwrap();
    let said = typed("http://127.0.0.1:9", &["validate", file.to_str().unwrap()]).run().await;
    assert_eq!(said.exit, Exit::Usage);
    assert!(said.out.contains("2 | memroy = \"4GiB\"\n   | ^^^^^^\n"), "{}", said.out);
    assert!(said.out.contains("did you mean `memory`?"), "{}", said.out);
    let said = typed("http://127.0.0.1:9", &["validate", "--json", file.to_str().unwrap()]).run().await;
    assert_eq!((&said.json()["valid"], &said.json()["problems"][0]["line"]), (&json!(false), &json!(2)));
}

#[tokio::test]
async fn artifact_upload_starts_with_pipeline_file_and_is_retried_whole() {
    let folder = tempfile::tempdir().unwrap();
    let text = "[service.app]\ncommand = [\"bin/app\"]\n";
    std::fs::write(folder.path().join("swell.toml"), text).unwrap();
    let file = folder.path().join("swell.toml").display().to_string();
    // The first try is cut: the second must send everything again.
    let server = Fake::start(|seen| if seen.before == 0 { Reply::Cut } else { fine(seen) }).await;
    let commit = "0123456789012345678901234567890123456789";
    let words = ["artifact", "push", "shop", "/out", "--commit", commit, "--file", &file, "--ref", "refs/heads/main"];
    let vars = [("SWELL_TOKEN", "swell_developer_1"), ("SOURCE_DATE_EPOCH", "1700000000")];
    let said = typed_with(&server.addr, &words, &vars).run().await;
    assert_eq!(said.exit, Exit::Done, "{}", said.err);
    let sent = server.seen_at("POST", "/v1/pipelines/shop/artifacts");
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[1].body, json!(format!("{text}</out 1700000000>")));
    assert_eq!(sent[1].query, format!("commit={commit}&file_bytes={}&ref=refs%2Fheads%2Fmain", text.len()));
}

#[tokio::test]
async fn digest_prefix_must_be_unique() {
    let two = || json!({ "items": [{ "digest": format!("sha256:{}", "ab".repeat(32)) }, { "digest": format!("sha256:{}", "ac".repeat(32)) }] });
    let server = Fake::start(move |seen| if seen.path == "/v1/artifacts" { Reply::Json(200, two()) } else { fine(seen) }).await;
    let said = typed(&server.addr, &["artifact", "show", "abab"]).run().await;
    assert_eq!(said.exit, Exit::Done, "{}", said.err);
    assert!(said.out.contains(&"ab".repeat(32)));
    for (word, code) in [("a", "usage"), ("ffff", "not_found"), ("zzzz", "usage")] {
        let said = typed(&server.addr, &["artifact", "show", word]).run().await;
        assert!(said.err.contains(code) && said.exit == Exit::Usage, "{word}: {}", said.err);
    }
}
