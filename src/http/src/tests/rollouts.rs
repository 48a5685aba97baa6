//! From a pushed artifact to a rollout and back, as a person does it.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::*;
use swell_model::{
    apply::testing::{FILE, evidence, info, name},
    command::{BuildAction, FleetAction, RolloutAction},
    fleet::observation::{Progress, Report, ReportOrigin, TargetReports},
    ids::{ReleaseId, RolloutId},
    interfaces::LogChunk,
    rollout::{Gate, Verdict},
    units::Timestamp,
    wire::AgentId,
};

/// A pipeline `shop`, an environment `production` with `count` connected targets.
async fn fleet(count: u32) -> Server {
    let server = Server::start().await;
    server.pipeline("shop").await;
    server.done("/v1/environments", json!({ "name": "production", "selector": { "tier": "production" } })).await;
    for number in 0..count {
        server.apply(FleetAction::Join { info: of_tier(number, "production") }).await;
    }
    server.apply(FleetAction::Presence { server: 1, connected: (0..count).collect() }).await;
    server
}

/// A target that an environment selects by its tier.
fn of_tier(number: u32, tier: &str) -> swell_model::fleet::TargetInfo {
    swell_model::fleet::TargetInfo { labels: [("tier".to_owned(), tier.to_owned())].into(), ..info(number) }
}

/// Pushes an artifact that holds `text`; the answer's status and body.
async fn push(server: &Server, number: u32, file: &str, archive: Vec<u8>) -> (StatusCode, Value) {
    let path = format!("/v1/pipelines/shop/artifacts?commit={number:040x}&file_bytes={}", file.len());
    let body = [file.as_bytes(), &archive].concat();
    answer(server.request(Method::POST, &path, Role::Developer).body(body)).await
}

async fn release(server: &Server, number: u32) -> String {
    let archive = packed(server.dir.path(), &format!("release {number}"));
    let (status, build) = push(server, number, FILE, archive).await;
    assert_eq!(status, StatusCode::CREATED, "{build}");
    assert_eq!((&build["state"], &build["cause"]), (&json!("ready-to-deploy"), &json!("import")));
    build["release"].as_str().unwrap().to_owned()
}

/// Drives a rollout to its end, as its actor would: every target healthy at once.
async fn carry_out(server: &Server, id: &str) {
    let rollout: RolloutId = id.parse().unwrap();
    loop {
        let (_, shown) = server.get(&format!("/v1/rollouts/{id}")).await;
        if shown["ended"] == true {
            return;
        }
        // The API counts waves from 1, the model from 0.
        let number = shown["wave"].as_u64().unwrap() as u32 - 1;
        let names = shown["waves"][number as usize]["targets"]["names"].as_array().unwrap().clone();
        let mut targets = roaring::RoaringBitmap::new();
        for name in names {
            let (_, target) = server.get(&format!("/v1/targets/{}", name.as_str().unwrap())).await;
            targets.insert(target["index"].as_u64().unwrap() as u32);
        }
        if shown["gate"]["gate"] == "convergence" {
            let unreachable = Default::default();
            server.apply(RolloutAction::ChangeTargets { rollout, targets: targets.clone(), unreachable }).await;
            let release: ReleaseId = shown["release"].as_str().unwrap().parse().unwrap();
            let report = |target| TargetReports { target, origin: next_origin(target), reports: vec![healthy(&release)] };
            server.apply(FleetAction::Report { targets: targets.iter().map(report).collect() }).await;
        }
        let gate = if shown["gate"]["gate"] == "bake" { Gate::Bake } else { Gate::Convergence };
        let evidence = evidence(Verdict::Pass);
        server.apply(RolloutAction::RecordVerdict { rollout, wave: number, gate, verdict: Verdict::Pass, evidence }).await;
    }
}

/// Newer than any before, of the target's only agent.
fn next_origin(target: u32) -> ReportOrigin {
    static SEQUENCE: AtomicU64 = AtomicU64::new(1);
    let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    ReportOrigin { agent: AgentId(format!("agent-{target}")), incarnation: 1, sequence }
}

fn healthy(release: &ReleaseId) -> Report {
    Report {
        pipeline: name("shop"),
        release: Some(release.clone()),
        progress: Progress::Healthy,
        serving: true,
        instances: Vec::new(),
        failure: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn imported_artifact_becomes_release_and_is_served() {
    let server = fleet(1).await;
    let release = release(&server, 1).await;
    let (_, shown) = server.get(&format!("/v1/releases/{release}")).await;
    assert_eq!(shown["file"]["service"]["web"]["command"], json!(["bin/web"]));
    let digest = shown["artifact"].as_str().unwrap();
    let (_, artifact) = server.get(&format!("/v1/artifacts/{digest}")).await;
    let (_, manifest) = answer(server.request(Method::GET, &format!("/v1/artifacts/{digest}/manifest"), Role::Agent)).await;
    assert_eq!((&manifest["digest"], &manifest["size"]), (&artifact["digest"], &artifact["size_bytes"]));
    let path = format!("/v1/artifacts/{digest}/content");
    let part = server.request(Method::GET, &path, Role::Agent).header("range", "bytes=0-3").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap().as_ref(), [0x28, 0xb5, 0x2f, 0xfd], "Zstandard's magic number");

    let (status, body) = push(&server, 2, "[service.web]\ncomand = []\n", Vec::new()).await;
    assert_problem(status, &body, "invalid_file");
    let (status, body) = push(&server, 2, FILE, b"no archive".to_vec()).await;
    assert_problem(status, &body, "not_an_archive");
}

/// An archive with a file and one entry more, as no packer of ours would write it.
fn with_entry(kind: tar::EntryType, path: &str, link: &str) -> Vec<u8> {
    let entry = |kind, path: &str, link: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_size(0);
        let fields = header.as_old_mut();
        fields.name[..path.len()].copy_from_slice(path.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let tar = [entry(tar::EntryType::Regular, "web", ""), entry(kind, path, link), vec![0; 1024]].concat();
    zstd::encode_all(&tar[..], 1).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn harmful_archive_is_refused_and_makes_no_release() {
    use tar::EntryType;
    let server = fleet(1).await;
    for (archive, why) in [
        (with_entry(EntryType::Regular, "../../etc/x", ""), "`../../etc/x`"),
        (with_entry(EntryType::Regular, "/etc/x", ""), "it is absolute"),
        (with_entry(EntryType::Symlink, "out", "../../etc"), "its target is outside the artifact"),
        (with_entry(EntryType::Link, "hard", "/etc/passwd"), "it links to something outside"),
        (with_entry(EntryType::Char, "null", ""), "it is a device"),
        (with_entry(EntryType::Fifo, "pipe", ""), "it is a fifo"),
        (with_entry(EntryType::Regular, "web", ""), "`web` twice"),
    ] {
        let (status, body) = push(&server, 1, FILE, archive).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert_problem(status, &body, "harmful_archive");
        assert!(body["detail"].as_str().unwrap().contains(why), "{why}: {body}");
    }
    let (_, builds) = server.get("/v1/builds").await;
    let (_, releases) = server.get("/v1/releases?pipeline=shop").await;
    assert_eq!((&builds["items"], &releases["items"]), (&json!([]), &json!([])), "{builds} {releases}");
    // Nothing is lost: a good one makes the first release.
    assert_eq!(release(&server, 2).await, "shop@1");
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_matches_rollout_that_can_be_paused_resumed_and_aborted() {
    let server = fleet(6).await;
    let (status, body) = server.post("/v1/rollouts", json!({ "pipeline": "shop", "environment": "production" })).await;
    assert_problem(status, &body, "no_release");
    release(&server, 1).await;

    let asked = json!({ "pipeline": "shop", "environment": "production" });
    let (status, plan) = answer(server.request(Method::POST, "/v1/plans", Role::Viewer).json(&asked)).await;
    assert_eq!(status, StatusCode::OK, "{plan}");
    let counts: Vec<_> = plan["waves"].as_array().unwrap().iter().map(|wave| wave["targets"]["count"].clone()).collect();
    assert_eq!(counts, [1, 2, 3]);
    assert_eq!((&plan["settings"]["bake_ms"], &plan["blocked"]), (&json!(10_000), &Value::Null));
    assert!(plan["timing"]["least_ms"].as_u64().unwrap() >= 20_000);

    let wrong = json!({ "pipeline": "shop", "environment": "production", "if_plan": format!("sha256:{}", "0".repeat(64)) });
    let (status, body) = server.post("/v1/rollouts", wrong).await;
    assert_problem(status, &body, "plan_changed");
    let right = json!({ "pipeline": "shop", "environment": "production", "if_plan": plan["digest"], "why": "first" });
    let rollout = server.done("/v1/rollouts", right).await;
    assert_eq!((&rollout["id"], &rollout["release"]), (&json!("r1"), &json!("shop@1")));
    assert_eq!(rollout["waves"][0]["targets"], plan["waves"][0]["targets"], "what was planned is carried out");

    let paused = server.done("/v1/rollouts/r1/pause", json!({ "why": "lunch" })).await;
    assert_eq!(paused["paused"]["why"], "lunch");
    assert!(paused["waits_for"].as_str().unwrap().ends_with("to resume it: lunch"), "{}", paused["waits_for"]);
    server.done("/v1/rollouts/r1/resume", json!({})).await;
    let (status, body) = server.post("/v1/rollouts/r1/resume", json!({})).await;
    assert_problem(status, &body, "illegal_transition");
    let (_, deployments) = server.get("/v1/environments/production/deployments").await;
    assert_eq!(deployments["items"][0]["rollout"], "r1");

    let aborted = server.done("/v1/rollouts/r1/abort", json!({ "why": "wrong day" })).await;
    assert_eq!(aborted["ended"], true, "nothing was changed yet: {aborted}");
    let (_, why) = server.get("/v1/why/r1").await;
    assert!(why["summary"].as_str().unwrap().starts_with("r1 is canceled"), "{}", why["summary"]);
    let kinds: Vec<_> = why["events"].as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds.first(), Some(&"rollout.created"));
    assert!(kinds.contains(&"rollout.paused"), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_finds_environment_and_release_or_names_choices() {
    let server = fleet(2).await;
    let (status, body) = server.post("/v1/rollbacks", json!({ "pipeline": "shop" })).await;
    assert_problem(status, &body, "not_deployed");
    for number in [1, 2] {
        release(&server, number).await;
        let rollout = server.done("/v1/rollouts", json!({ "pipeline": "shop", "environment": "production" })).await;
        carry_out(&server, rollout["id"].as_str().unwrap()).await;
    }
    let rollback = json!({ "pipeline": "shop", "why": "errors" });
    let planned = server.done("/v1/plans", json!({ "pipeline": "shop", "rollback": true })).await;
    assert_eq!((&planned["environment"], &planned["release"]), (&json!("production"), &json!("shop@1")));
    let back = server.done("/v1/rollbacks", rollback.clone()).await;
    assert_eq!((&back["release"], &back["purpose"]), (&json!("shop@1"), &json!("rollback")), "{back}");
    assert_eq!(back["waves"].as_array().unwrap().len(), 1);

    server.done("/v1/environments", json!({ "name": "staging", "selector": { "tier": "staging" } })).await;
    server.apply(FleetAction::Join { info: of_tier(90, "staging") }).await;
    server.done("/v1/rollouts", json!({ "pipeline": "shop", "environment": "staging", "release": "shop@1" })).await;
    let (status, body) = server.post("/v1/rollbacks", rollback).await;
    assert_problem(status, &body, "ambiguous");
    assert_eq!(body["choices"], json!(["production", "staging"]));
    let (status, body) = server.post("/v1/rollbacks", json!({ "pipeline": "shop", "environment": "staging" })).await;
    assert_problem(status, &body, "no_former_release");
    let (status, body) =
        server.post("/v1/rollbacks", json!({ "pipeline": "shop", "to": "blog@1", "environment": "production" })).await;
    assert_problem(status, &body, "invalid");
    let _: BTreeMap<String, Value> = serde_json::from_value(server.get("/v1/targets/web-0").await.1).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn log_is_readable_during_and_after_attempt() {
    let server = fleet(1).await;
    let resources = swell_model::build::Resources::default();
    server.apply(FleetAction::RegisterRunner { name: name("r1"), resources }).await;
    let build = server.done("/v1/builds", json!({ "pipeline": "shop", "commit": "1".repeat(40) })).await;
    assert_eq!(build["waits_for"], "its turn on runner r1");
    let (status, body) = server.get("/v1/builds/b1/log").await;
    assert_problem(status, &body, "no_log");
    let id = BuildId(1);
    server.apply(BuildAction::Assign { build: id, runner: name("r1") }).await;
    let chunk = |start, text: &str| LogChunk {
        start,
        end: start + 10,
        at: Timestamp(1),
        stderr: false,
        phase: "build".into(),
        text: text.into(),
    };
    *server.logs.chunks.lock().unwrap() = Some((id, vec![chunk(0, "one"), chunk(10, "two")]));
    let lines = async |query: &str| {
        let request = server.request(Method::GET, &format!("/v1/builds/b1/log{query}"), Role::Viewer);
        let text = request.send().await.unwrap().text().await.unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(lines("").await, ["one", "two"]);
    assert_eq!(lines("?start=10").await, ["two"]);

    let mut kept = swell_artifacts::log::LogEncoder::new(Vec::new()).unwrap();
    kept.push(&chunk(0, "one")).unwrap();
    kept.push(&chunk(10, "three")).unwrap();
    let log = server.content.put(swell_artifacts::store::stream_of(kept.finish().unwrap()), None).await.unwrap().digest;
    let end = swell_model::build::AttemptEnd::Canceled;
    server.done("/v1/builds/b1/cancel", json!({})).await;
    server.apply(BuildAction::End { build: id, attempt: 1, end, log: Some(log) }).await;
    assert_eq!(lines("").await, ["one", "three"]);
    assert_eq!(lines("?start=10").await, ["three"]);
    let (_, runners) = server.get("/v1/runners").await;
    assert_eq!(runners["items"][0]["builds"], json!([]));
}
