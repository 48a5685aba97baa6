//! Access rules, and the form of errors.

use hyper::header::WWW_AUTHENTICATE;
use reqwest::{Method, StatusCode};

use super::*;
use crate::{Needs, USER_HEADER, openapi, rules};

/// A path that the router matches, of a resource that does not exist.
fn concrete(path: &str) -> String {
    let digest = format!("sha256:{}", "0".repeat(64));
    let id = if path.contains("rollouts") {
        "r9"
    } else if path.contains("releases") {
        "shop@9"
    } else {
        "b9"
    };
    let path = path.replace("{digest}", &digest).replace("{id}", id).replace("{release}", "shop@9");
    path.replace("{name}", "shop").replace("{repository}", "shop").replace("{*rest}", "info/refs")
}

#[tokio::test(flavor = "multi_thread")]
async fn request_without_valid_token_is_refused_except_for_health_and_document() {
    let server = Server::start().await;
    for rule in rules() {
        let method = rule.method.clone();
        for token in [None, Some("swell_admin_0000"), Some("")] {
            let request = server.client.request(method.clone(), format!("{}{}", server.base, concrete(&rule.path)));
            let request = token.into_iter().fold(request, |request, token| request.bearer_auth(token));
            let response = request.send().await.unwrap();
            if rule.needs == Needs::Nothing {
                assert_eq!(response.status(), StatusCode::OK, "{} {}", rule.method, rule.path);
                continue;
            }
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{} {}", rule.method, rule.path);
            let challenge = response.headers()[WWW_AUTHENTICATE].to_str().unwrap().to_owned();
            assert!(challenge.starts_with(if rule.needs == Needs::Git { "Basic" } else { "Bearer" }), "{challenge}");
            assert_problem(StatusCode::UNAUTHORIZED, &response.json().await.unwrap(), "unauthorized");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn role_is_refused_what_it_may_not_do() {
    let server = Server::start().await;
    let before = *server.node.last_event().borrow();
    for rule in rules().iter().filter(|rule| rule.method != Method::GET && rule.path != "/v1/plans" && rule.needs != Needs::Git) {
        let method = rule.method.clone();
        let (status, body) = answer(server.request(method, &concrete(&rule.path), Role::Viewer)).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{} {}", rule.method, rule.path);
        assert_problem(status, &body, "forbidden");
    }
    for (role, path) in [(Role::Viewer, "/v1/agents/session"), (Role::Agent, "/v1/gateways/session"), (Role::Agent, "/v1/builds")]
    {
        let (status, _) = answer(server.request(Method::GET, path, role)).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{role} {path}");
    }
    let push = "/git/shop/info/refs?service=git-receive-pack";
    let (status, _) = answer(server.request(Method::GET, push, Role::Viewer)).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "a viewer may not push");
    for path in
        ["/git/shop.git/git-receive%2Dpack", "/git/shop.git/info%2Frefs?service=git-receive-pack", "/git/sh%6Fp/info/refs"]
    {
        let method = if path.contains("info") { Method::GET } else { Method::POST };
        let (status, body) = answer(server.request(method, path, Role::Viewer)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} must not be read in two ways");
        assert_problem(status, &body, "invalid");
    }
    let environment = server.request(Method::POST, "/v1/environments", Role::Developer);
    assert_eq!(answer(environment).await.0, StatusCode::FORBIDDEN, "policy is the admin's");
    assert_eq!(*server.node.last_event().borrow(), before, "nothing happened");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_endpoint_has_one_rule_and_every_rule_an_endpoint() {
    let document = serde_json::to_value(openapi()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let is_this = |rule: &&crate::Rule| rule.path == *path && rule.method.as_str().eq_ignore_ascii_case(method);
            assert_eq!(rules().iter().filter(is_this).count(), 1, "rules of {method} {path}");
        }
    }
    let server = Server::start().await;
    for rule in rules() {
        let request = server.request(rule.method.clone(), &concrete(&rule.path), Role::Admin);
        let request = if rule.path == "/v1/events" { request.header("accept", "application/json") } else { request };
        let (_, body) = answer(request).await;
        assert!(body["code"] != "no_route" && body["code"] != "no_method", "{} {}: {body}", rule.method, rule.path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn change_is_attributed_to_user_header() {
    let server = Server::start().await;
    let request = server.request(Method::POST, "/v1/repositories", Role::Developer).header(USER_HEADER, "ada@example.org");
    let (status, _) = answer(request.json(&serde_json::json!({ "name": "shop" }))).await;
    assert_eq!(status, StatusCode::CREATED);
    let (_, events) = server.get("/v1/events?subject=repository/").await;
    assert_eq!(events["items"][0]["by"], "developer:ada@example.org");
    let bad = server.request(Method::GET, "/v1/whoami", Role::Developer).header(USER_HEADER, "ada lovelace");
    assert_eq!(answer(bad).await.0, StatusCode::BAD_REQUEST);
    let (_, whoami) = answer(server.request(Method::GET, "/v1/whoami", Role::Agent)).await;
    assert_eq!(whoami, serde_json::json!({ "role": "agent", "name": "agent" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn token_is_accepted_as_password_only_for_git() {
    let server = Server::start().await;
    let url = format!("{}/git/shop.git/info/refs?service=git-upload-pack", server.base);
    let request = server.client.get(url).basic_auth("ada", Some(server.token(Role::Viewer)));
    assert_eq!(answer(request).await.0, StatusCode::NOT_FOUND, "the token is good, the repository is not there");
    let basic = server.client.get(format!("{}/v1/builds", server.base)).basic_auth("ada", Some(server.token(Role::Admin)));
    assert_eq!(answer(basic).await.0, StatusCode::UNAUTHORIZED, "browsers must not be made to remember the token");
}
