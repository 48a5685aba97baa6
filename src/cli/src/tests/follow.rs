//! Following a resource: to every kind of end, through lost connections and server restarts, until time-out or Ctrl-C.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::fake::{Fake, Reply, Seen, typed, until};
use crate::Exit;

fn rollout(state: &str, more: Value) -> Value {
    let ended = matches!(state, "deployed" | "rolled-back" | "failed" | "canceled" | "preempted" | "expired");
    let mut rollout = json!({
        "id": "r7", "pipeline": "shop", "environment": "production", "release": "shop@12", "stable": "shop@11", "purpose": "deploy",
        "state": state, "ended": ended, "total": 3, "wave": 1, "created_at": 1_000_000, "ended_at": ended.then_some(1_095_000),
        "waits_for": (!ended).then_some("web-1 to become healthy"),
        "timing": { "least_ms": 70_000, "least_rollback_ms": 9000 },
        "waves": [
            { "number": 1, "state": "at-work", "targets": { "count": 1, "names": ["web-1"] }, "counts": { "waiting": 1 } },
            { "number": 2, "state": "waiting", "targets": { "count": 2, "names": ["web-2", "web-3"] }, "counts": { "waiting": 2 } },
        ],
    });
    if let (Value::Object(fields), Value::Object(more)) = (&mut rollout, more) {
        fields.extend(more);
    }
    rollout
}

fn build(state: &str, attempts: Value) -> Value {
    let ended = matches!(state, "ready-to-deploy" | "build-failed" | "test-failed" | "exhausted");
    json!({
        "id": "b3", "pipeline": "shop", "commit": "0123456789012345678901234567890123456789", "git_ref": "refs/heads/main",
        "state": state, "ended": ended, "created_at": 1_000_000, "ended_at": ended.then_some(1_030_000), "attempts": attempts,
    })
}

/// An event stream without events.
fn silent() -> Reply {
    Reply::Stream(vec!["id: 1.0\nevent: cursor\ndata: 1.0\n\n".to_owned()], true)
}

/// Answers each poll with the next state; the last one repeats.
fn script(states: Vec<Value>) -> impl Fn(&Seen) -> Reply + Send + Sync {
    move |seen| match (seen.method.as_str(), seen.path.as_str()) {
        ("GET", "/v1/events") => silent(),
        ("GET", _) => Reply::Json(200, states[(seen.before + 1).min(states.len() - 1)].clone()),
        _ => Reply::Json(201, states[0].clone()),
    }
}

const DEPLOY: &[&str] = &["deploy", "shop", "--env", "production"];

#[tokio::test]
async fn deploy_prints_progress_lines_until_deployed() {
    let healthy = json!([
        { "number": 1, "state": "passed", "targets": { "count": 1, "names": ["web-1"] }, "counts": { "healthy": 1 } },
        { "number": 2, "state": "at-work", "targets": { "count": 2, "names": [] }, "counts": { "changing": 2 } },
    ]);
    let verdicts = json!([{ "wave": 1, "gate": "bake", "verdict": "pass", "evidence": "healthy for 1m" }]);
    let server = Fake::start(script(vec![
        rollout("deploying", json!({})),
        rollout("canary-check", json!({})),
        rollout("rolling-out", json!({ "waves": healthy, "verdicts": verdicts })),
        rollout("deployed", json!({ "waves": healthy, "verdicts": verdicts })),
    ]))
    .await;
    let said = typed(&server.addr, DEPLOY).run().await;
    assert_eq!(said.exit, Exit::Done);
    insta::assert_snapshot!(said.err, @r"
    r7: shop@12 to production from shop@11, 3 targets in 2 waves, at least 1m10s
    r7 deploying
    r7 deploying -> canary-check
    r7 canary-check -> rolling-out
    r7 wave 1/2: 1/1 healthy
    r7 wave 2/2: 0/2 healthy, 2 changing
    r7 wave 1 bake: pass: healthy for 1m
    r7 rolling-out -> deployed
    ");
    insta::assert_snapshot!(said.out, @"r7: deployed: production runs shop@12 on 3 targets (after 1m35s)");
    let asked = &server.seen_at("POST", "/v1/rollouts")[0];
    assert_eq!(asked.body, json!({ "pipeline": "shop", "environment": "production" }));
    assert_eq!(
        (asked.headers["authorization"].as_str(), asked.headers["x-swell-user"].as_str()),
        ("Bearer swell_developer_1", "ada")
    );
    assert_eq!(server.seen_at("GET", "/v1/events")[0].query, "subject=rollout%2Fr7");
}

#[tokio::test]
async fn failed_rollout_prints_its_evidence() {
    let failed = json!({
        "verdicts": [{ "wave": 1, "gate": "convergence", "verdict": "fail", "evidence": "1 of 1 failed, at most 0 may" }],
        "failures": [{
            "target": "web-1", "service": "api", "reason": "the process ended at once", "hint": "look at its output", "exit": "exit 3",
            "probe": "connection refused", "output": "starting\n\u{1b}[31mpanic: no database\u{1b}[0m\n",
        }],
    });
    let server = Fake::start(script(vec![rollout("deploying", json!({})), rollout("rolled-back", failed)])).await;
    let said = typed(&server.addr, DEPLOY).run().await;
    assert_eq!(said.exit, Exit::RolledBack);
    let evidence = said.err.split_once("deploying -> rolled-back\n").unwrap().1;
    insta::assert_snapshot!(evidence, @r"
    r7 wave 1 convergence: fail: 1 of 1 failed, at most 0 may
    r7 web-1 failed: the process ended at once
    r7 wave 1 failed its convergence gate: 1 of 1 failed, at most 0 may
    web-1 (api) failed: the process ended at once
      exit: exit 3
      last probe: connection refused
      | starting
      | panic: no database
      hint: look at its output
      details: swell why r7
    ");
    insta::assert_snapshot!(said.out, @"r7: rolled-back: production is back on shop@11; shop@12 is quarantined there (after 1m35s)");
}

#[tokio::test]
async fn end_of_resource_determines_exit_code() {
    let ends = [
        ("deployed", Exit::Done),
        ("rolled-back", Exit::RolledBack),
        ("failed", Exit::RollbackFailed),
        ("canceled", Exit::Failed),
        ("preempted", Exit::Failed),
        // The state of a newer server.
        ("expired", Exit::Failed),
    ];
    for (state, exit) in ends {
        let server = Fake::start(script(vec![rollout("deploying", json!({})), rollout(state, json!({}))])).await;
        assert_eq!(typed(&server.addr, DEPLOY).run().await.exit, exit, "{state}");
    }
    for (state, exit) in [("ready-to-deploy", Exit::Done), ("test-failed", Exit::Failed), ("exhausted", Exit::Failed)] {
        let server = Fake::start(script(vec![build("queued", json!([])), build(state, json!([]))])).await;
        assert_eq!(typed(&server.addr, &["build", "shop"]).run().await.exit, exit, "{state}");
    }
}

#[tokio::test]
async fn failed_build_prints_its_phase_and_last_output() {
    let at_work = json!([{ "number": 1, "runner": "r1", "unisolated": "no user namespaces", "phases": [
        { "phase": "checkout", "started_at": 1000, "ended_at": 1400 }, { "phase": "build", "started_at": 1400 },
    ] }]);
    let failed = json!([{ "number": 1, "runner": "r1", "unisolated": "no user namespaces", "end": "failed", "phases": [
        { "phase": "checkout", "started_at": 1000, "ended_at": 1400 },
        { "phase": "build", "started_at": 1400, "ended_at": 9400, "exit_code": 2 },
    ], "failure": { "phase": "build", "reason": "the script ended with 2", "hint": "correct it and push", "output": "cc: no such file\n" } }]);
    let server =
        Fake::start(script(vec![build("queued", json!([])), build("building", at_work), build("build-failed", failed)])).await;
    let said = typed(&server.addr, &["build", "shop"]).run().await;
    insta::assert_snapshot!(said.err, @r"
    b3: building shop 012345678901 (main)
    b3 queued
    b3 attempt 1 on runner r1
    b3 is NOT ISOLATED: no user namespaces
    b3 checkout: 400ms
    b3 build …
    b3 queued -> building
    b3 build: 8s, exit 2
    b3 attempt 1: the script ended with 2
    b3 building -> build-failed
    b3 failed in build: the script ended with 2
      | cc: no such file
      hint: correct it and push
      full log: swell logs b3
    ");
    assert_eq!(said.out, "b3: shop 012345678901 (main) build-failed (after 30s)\n");
}

#[tokio::test]
async fn json_result_is_alone_on_standard_output() {
    let server = Fake::start(script(vec![rollout("deploying", json!({})), rollout("deployed", json!({}))])).await;
    let said = typed(&server.addr, &[DEPLOY, &["--json"]].concat()).run().await;
    assert_eq!(said.json()["state"], "deployed");
    assert!(said.err.contains("r7 deploying"));
}

#[tokio::test]
async fn detach_interrupt_and_timeout_say_how_to_resume_and_abort_nothing() {
    let server = Fake::start(script(vec![rollout("deploying", json!({}))])).await;
    let said = typed(&server.addr, &[DEPLOY, &["--detach"]].concat()).run().await;
    assert_eq!(said.exit, Exit::Done);
    assert!(said.err.contains("swell status r7 --watch") && said.err.contains("swell abort r7"), "{}", said.err);

    let running = typed(&server.addr, DEPLOY);
    running.context.interrupt.press();
    let said = running.run().await;
    assert_eq!(said.exit, Exit::TimedOut);
    assert!(said.err.contains("swell status r7 --watch") && said.err.contains("swell abort r7"), "{}", said.err);

    let said = typed(&server.addr, &[DEPLOY, &["--timeout", "50ms"]].concat()).run().await;
    assert_eq!(said.exit, Exit::TimedOut);
    assert!(said.err.contains("the time-out passed"), "{}", said.err);
    assert!(server.seen().iter().all(|seen| !seen.path.contains("abort")));
}

#[tokio::test]
async fn interrupt_does_not_wait_for_pending_request() {
    let server = Fake::start(|seen| match seen.method.as_str() {
        "POST" => Reply::Json(201, rollout("deploying", json!({}))),
        _ => silent(),
    })
    .await;
    for words in [DEPLOY, &["status", "--watch"]] {
        let before = server.seen().len();
        let running = typed(&server.addr, words);
        let context = Arc::clone(&running.context);
        let end = tokio::spawn(running.run());
        let asked = || server.seen()[before..].iter().any(|seen| seen.path.starts_with("/v1/rollouts") && seen.method == "GET");
        until("a request that is not answered", asked).await;
        context.interrupt.press();
        let said = end.await.unwrap();
        assert!([Exit::TimedOut, Exit::Done].contains(&said.exit), "{said:?}");
    }
}

#[tokio::test]
async fn heartbeat_repeats_reason_for_waiting() {
    let server = Fake::start(script(vec![rollout("deploying", json!({}))])).await;
    let running = typed(&server.addr, DEPLOY).pace(|pace| pace.heartbeat_every = Duration::from_millis(30));
    let (err, context) = (running.err(), Arc::clone(&running.context));
    let end = tokio::spawn(running.run());
    until("two heartbeats", || err.text().matches("waiting for web-1 to become healthy").count() >= 2).await;
    context.interrupt.press();
    assert_eq!(end.await.unwrap().exit, Exit::TimedOut);
}

#[tokio::test]
async fn blocked_rollout_says_what_blocks_it_and_how_to_cancel() {
    let blocked = json!({ "waits_for": "the environment is frozen by admin: black friday" });
    let server = Fake::start(script(vec![rollout("blocked", blocked)])).await;
    let running = typed(&server.addr, DEPLOY).pace(|pace| pace.heartbeat_every = Duration::from_millis(30));
    let (err, context) = (running.err(), Arc::clone(&running.context));
    let end = tokio::spawn(running.run());
    let expected = "; the environment is frozen by admin: black friday; cancel with `swell abort r7`";
    until("a heartbeat", || err.text().contains(expected)).await;
    context.interrupt.press();
    assert_eq!(end.await.unwrap().exit, Exit::TimedOut);
}

#[tokio::test]
async fn following_survives_server_restart() {
    let server = Fake::start(|seen| match (seen.method.as_str(), seen.path.as_str()) {
        ("POST", _) => Reply::Json(201, rollout("deploying", json!({}))),
        (_, "/v1/events") if seen.before < 3 => Reply::Cut,
        (_, "/v1/events") => silent(),
        (_, _) if seen.before == 1 => Reply::Cut,
        (_, _) if seen.before < 4 => Reply::Json(503, json!({ "code": "no_leader", "detail": "no leader", "hint": "wait" })),
        (_, _) if seen.before < 6 => Reply::Json(200, rollout("rolling-out", json!({}))),
        _ => Reply::Json(200, rollout("deployed", json!({}))),
    })
    .await;
    let said = typed(&server.addr, DEPLOY).run().await;
    assert_eq!(said.exit, Exit::Done, "{}", said.err);
    assert_eq!(said.err.matches("lost the server").count(), 1, "{}", said.err);
    assert!(said.err.contains("reconnected"), "{}", said.err);
}

#[tokio::test]
async fn following_ends_with_how_to_resume_when_server_stays_unreachable() {
    let server = Fake::start(|seen| match seen.method.as_str() {
        "POST" => Reply::Json(201, rollout("deploying", json!({}))),
        _ => Reply::Cut,
    })
    .await;
    let said = typed(&server.addr, DEPLOY).pace(|pace| pace.away_max = Duration::from_millis(100)).run().await;
    assert_eq!(said.exit, Exit::Unreachable);
    assert!(said.err.contains("swell status r7 --watch"), "{}", said.err);
}

#[tokio::test]
async fn events_resume_after_lost_connection() {
    let event = |seq: &str| {
        let event = json!({ "seq": seq, "at": 1, "by": "developer:ada", "subject": "build/b3", "kind": "build.started" });
        format!("id: {seq}\nevent: event\ndata: {event}\n\n")
    };
    let server = Fake::start(move |seen| match (seen.path.as_str(), seen.headers["accept"].contains("event-stream")) {
        ("/v1/cluster", _) => Reply::Json(200, json!({ "last_event": "4.0" })),
        (_, false) => Reply::Json(200, json!({ "items": [{ "seq": "4.0", "subject": "build/b3" }], "next": null })),
        _ if seen.query.contains("after=4.0") => Reply::Stream(vec![event("5.0"), event("6.1")], false),
        _ if seen.query.contains("after=6.1") => Reply::Stream(vec![event("7.0")], true),
        _ => Reply::Json(400, json!({ "code": "invalid", "detail": seen.query, "hint": "" })),
    })
    .await;
    let running = typed(&server.addr, &["events", "-f", "--json"]);
    let (context, out) = (Arc::clone(&running.context), running.out());
    let end = tokio::spawn(running.run());
    until("the event after the break", || out.text().contains("7.0")).await;
    context.interrupt.press();
    let said = end.await.unwrap();
    assert!(said.err.contains("no event was missed"), "{}", said.err);
    let seqs: Vec<String> = said.json_lines().iter().filter_map(|line| line["seq"].as_str().map(str::to_owned)).collect();
    assert_eq!(seqs, ["4.0", "5.0", "6.1", "7.0"]);
}

#[tokio::test]
async fn log_resumes_after_lost_connection_and_continues_with_next_attempt() {
    let line = |n: u64, text: &str| json!({ "start": n, "end": n + 1, "phase": "build", "text": text }).to_string() + "\n";
    let attempt = |number: u32, end: Option<&str>| json!({ "number": number, "runner": "r1", "end": end });
    let server = Fake::start(move |seen| {
        let with = |state: &str, attempts: Value| {
            let mut build = build(state, attempts.clone());
            build["attempt_count"] = json!(attempts.as_array().unwrap().len());
            Reply::Json(200, build)
        };
        match (seen.path.as_str(), seen.before) {
            ("/v1/builds/b3", 0 | 1) => with("building", json!([attempt(1, None)])),
            ("/v1/builds/b3", 2) => with("queued", json!([attempt(1, Some("lost")), attempt(2, None)])),
            ("/v1/builds/b3", _) => with("ready-to-deploy", json!([attempt(1, Some("lost")), attempt(2, Some("succeeded"))])),
            (_, 0) => Reply::Stream(vec![line(0, "one"), line(1, "two")], false),
            _ if seen.query.contains("start=2") && seen.query.contains("attempt=1") => {
                Reply::Stream(vec![line(2, "three")], false)
            }
            _ if seen.query.contains("start=0") && seen.query.contains("attempt=2") => {
                Reply::Stream(vec![line(0, "again")], false)
            }
            _ => Reply::Stream(vec![], false),
        }
    })
    .await;
    let said = typed(&server.addr, &["logs", "b3", "-f"]).run().await;
    assert_eq!(said.exit, Exit::Done);
    assert_eq!(said.out, "one\ntwo\nthree\nagain\n");
}

#[tokio::test]
async fn change_is_retried_with_same_idempotency_key() {
    let server = Fake::start(|seen| match (seen.method.as_str(), seen.before) {
        ("POST", 0) => Reply::Json(503, json!({ "code": "no_leader", "detail": "no leader", "hint": "wait", "retryable": true })),
        ("POST", 1) => Reply::Cut,
        _ => Reply::Json(200, rollout("deploying", json!({ "paused": { "why": "lunch", "by": "developer:ada" } }))),
    })
    .await;
    let said = typed(&server.addr, &["pause", "r7", "--why", "lunch"]).run().await;
    assert_eq!(said.exit, Exit::Done, "{}", said.err);
    let sent = server.seen_at("POST", "/v1/rollouts/r7/pause");
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|seen| seen.headers["idempotency-key"] == sent[0].headers["idempotency-key"]));
}

#[tokio::test]
async fn unreachable_server_fails_soon_with_hint() {
    let said = typed("http://127.0.0.1:9", &["whoami"]).run().await;
    assert_eq!(said.exit, Exit::Unreachable);
    assert!(said.err.contains("error[unreachable]") && said.err.contains("swell dev"), "{}", said.err);
}
