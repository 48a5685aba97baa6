//! Lists, changes and their guards, and wrong requests.

use reqwest::{Method, StatusCode, header::ETAG};
use serde_json::json;

use super::*;
use swell_model::{
    command::RepositoryAction,
    repository::{CommitId, RefUpdate},
};

#[tokio::test(flavor = "multi_thread")]
async fn wrong_request_is_refused_with_hint() {
    let server = Server::start().await;
    let (status, body) = server.get("/v1/nothing").await;
    assert_problem(status, &body, "no_route");
    let (status, body) = answer(server.request(Method::DELETE, "/v1/builds", Role::Admin)).await;
    assert_problem(status, &body, "no_method");
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);

    let (status, body) = server.post("/v1/builds", json!({ "pipline": "shop" })).await;
    assert_problem(status, &body, "invalid");
    assert_eq!(body["hint"], "did you mean `pipeline`?");
    let (status, body) = server.get("/v1/builds?stat=queued").await;
    assert_eq!((status, &body["hint"]), (StatusCode::BAD_REQUEST, &json!("did you mean `state`?")));
    let (status, body) = server.get("/v1/builds?state=sleeping").await;
    assert_problem(status, &body, "invalid");
    let (status, body) = server.get("/v1/builds/42").await;
    assert_problem(status, &body, "invalid");
    assert!(body["detail"].as_str().unwrap().contains("such as `b42`"), "{body}");
    let (status, body) = server.get("/v1/builds/b42").await;
    assert_problem(status, &body, "not_found");
    assert_eq!(status, StatusCode::NOT_FOUND);

    let text = server.request(Method::POST, "/v1/builds", Role::Admin).body("{}");
    let (status, body) = answer(text).await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{body}");
    let (status, body) = server.post("/v1/repositories", json!({ "name": "x".repeat(2 << 20) })).await;
    assert_problem(status, &body, "too_large");
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn consecutive_pages_of_list_have_no_gap_or_repeat() {
    let server = Server::start().await;
    for name in ["e", "b", "d", "a", "c"] {
        server.pipeline(name).await;
    }
    let (mut names, mut path) = (Vec::new(), "/v1/pipelines?limit=2".to_owned());
    for _ in 0..5 {
        let (_, page) = server.get(&path).await;
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 2 && page["as_of"].as_u64().unwrap() > 0);
        names.extend(items.iter().map(|item| item["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/pipelines?limit=2&cursor={next}");
    }
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    for bad in ["limit=0", "limit=501", "limit=x", "cursor=A!"] {
        let (status, body) = server.get(&format!("/v1/pipelines?{bad}")).await;
        assert_problem(status, &body, "invalid");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_are_listed_newest_first_and_filtered() {
    let server = Server::start().await;
    for name in ["shop", "blog"] {
        server.pipeline(name).await;
    }
    for (number, pipeline) in [(1, "shop"), (2, "blog"), (3, "shop")] {
        let body = json!({ "pipeline": pipeline, "commit": format!("{number:040x}") });
        let build = server.done("/v1/builds", body).await;
        assert_eq!(build["id"], format!("b{number}"));
        assert_eq!(build["waits_for"], "a runner: none is connected");
    }
    let ids = async |query: &str| {
        let (_, page) = server.get(&format!("/v1/builds{query}")).await;
        page["items"].as_array().unwrap().iter().map(|build| build["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids("").await, ["b3", "b2", "b1"]);
    assert_eq!(ids("?pipeline=shop").await, ["b3", "b1"]);
    assert_eq!(ids("?cursor=b3&limit=1").await, ["b2"]);
    server.done("/v1/builds/b1/cancel", json!({})).await;
    assert_eq!(ids("?state=open").await, ["b3", "b2"]);
    assert_eq!(ids("?state=canceled").await, ["b1"]);
    let retried = server.done("/v1/builds/b1/retry", json!({})).await;
    assert_eq!((&retried["id"], &retried["state"]), (&json!("b4"), &json!("queued")));
    let (status, body) = server.post("/v1/builds/b4/retry", json!({})).await;
    assert_problem(status, &body, "illegal_transition");
    let (status, body) = server.post("/v1/builds", json!({ "pipeline": "shop", "ref": "main" })).await;
    assert_eq!((status, &body["hint"]), (StatusCode::BAD_REQUEST, &json!("name the commit")));
}

#[tokio::test(flavor = "multi_thread")]
async fn change_with_stale_etag_is_refused() {
    let server = Server::start().await;
    server.done("/v1/environments", json!({ "name": "production", "least_bake": "5m", "first_wave_max": "10%" })).await;
    let shown = server.request(Method::GET, "/v1/environments/production", Role::Viewer).send().await.unwrap();
    let tag = shown.headers()[ETAG].to_str().unwrap().to_owned();
    let body: Value = shown.json().await.unwrap();
    assert_eq!((&body["least_bake_ms"], &body["first_wave_max"]), (&json!(300_000), &json!("10%")));
    let freeze = |tag: &str| {
        let request = server.request(Method::POST, "/v1/environments/production/freeze", Role::Admin);
        answer(request.header("if-match", tag).json(&json!({ "why": "black friday" })))
    };
    let (status, frozen) = freeze(&tag).await;
    assert_eq!((status, &frozen["frozen"]["why"]), (StatusCode::OK, &json!("black friday")), "{frozen}");
    let (status, body) = freeze(&tag).await;
    assert_problem(status, &body, "changed");
    assert_eq!(status, StatusCode::PRECONDITION_FAILED);
    let (status, body) = freeze("garbage").await;
    assert_problem(status, &body, "invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_idempotency_key_repeats_answer_not_change() {
    let server = Server::start().await;
    server.pipeline("shop").await;
    let send = async |path: &str, body: Value| {
        let request = server.request(Method::POST, path, Role::Developer).header("idempotency-key", "k1").json(&body);
        let response = request.send().await.unwrap();
        let replayed = response.headers().contains_key("idempotency-replayed");
        (response.status(), replayed, response.json::<Value>().await.unwrap())
    };
    let again = json!({ "pipeline": "shop", "commit": "1".repeat(40), "again": true });
    let (status, replayed, first) = send("/v1/builds", again.clone()).await;
    assert_eq!((status, replayed), (StatusCode::CREATED, false));
    let (status, replayed, second) = send("/v1/builds", again).await;
    assert_eq!((status, replayed), (StatusCode::CREATED, true));
    assert_eq!(first["id"], second["id"]);
    let (status, replayed, _) = send("/v1/repositories", json!({ "name": "shop" })).await;
    assert_eq!((status, replayed), (StatusCode::CREATED, false), "a key counts for one route");
    let other = json!({ "pipeline": "shop", "commit": "2".repeat(40), "again": true });
    let (status, _, body) = send("/v1/builds", other).await;
    assert_problem(status, &body, "key_reused");
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "another request is not answered with the success of the first");
    let (_, builds) = server.get("/v1/builds").await;
    assert_eq!(builds["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_is_answered_after_branch_was_deleted() {
    let server = Server::start().await;
    server.done("/v1/repositories", json!({ "name": "shop" })).await;
    server.done("/v1/pipelines", json!({ "name": "shop", "source": { "hosted": "shop" } })).await;
    let first: CommitId = "1".repeat(40).parse().unwrap();
    let moved = async |old: Option<&CommitId>, new: Option<&CommitId>| {
        let update = RefUpdate { name: "refs/heads/topic".into(), old: old.cloned(), new: new.cloned() };
        let repository = "shop".parse().unwrap();
        server.apply(RepositoryAction::Push { repository, updates: vec![update], bundle: None }).await;
    };
    moved(None, Some(&first)).await;
    let build = json!({ "pipeline": "shop", "ref": "topic" });
    let send = async || {
        answer(server.request(Method::POST, "/v1/builds", Role::Developer).header("idempotency-key", "k").json(&build)).await
    };
    let (status, made) = send().await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    moved(Some(&first), None).await;
    let (status, again) = send().await;
    assert_eq!((status, &again["id"]), (StatusCode::CREATED, &made["id"]), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_is_stored_within_size_bounds() {
    let server = Server::start().await;
    let put = |bytes: Vec<u8>| answer(server.request(Method::POST, "/v1/blobs", Role::Agent).body(bytes));
    let (status, blob) = put(b"panic: no database".to_vec()).await;
    assert_eq!(status, StatusCode::CREATED);
    let (_, text) = server.get(&format!("/v1/blobs/{}", blob["digest"].as_str().unwrap())).await;
    assert_eq!(text, "panic: no database");
    let (status, body) = put(vec![0; (64 << 10) + 1]).await;
    assert_problem(status, &body, "too_large");
    let (status, body) = put(Vec::new()).await;
    assert_problem(status, &body, "invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_report_leader_and_counts() {
    let server = Server::start().await;
    server.pipeline("shop").await;
    let (status, ready) = server.get("/readyz?verbose").await;
    assert_eq!((status, &ready["ready"]), (StatusCode::OK, &json!(true)), "{ready}");
    assert_eq!(ready["checks"].as_array().unwrap().len(), 3);
    let (_, text) = server.get("/metrics").await;
    let text = text.as_str().unwrap();
    for line in ["swell_leader 1", "swell_builds_open{state=\"queued\"} 0", "swell_propose_seconds_count 1"] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    assert!(text.lines().all(|line| line.starts_with("# ") || line.starts_with("swell_")));
    let (_, cluster) = server.get("/v1/cluster").await;
    assert_eq!((&cluster["server"], &cluster["leader"]), (&json!(1), &json!(1)));
}
