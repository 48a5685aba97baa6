//! Who may do what: one table of every route, and the layer that holds requests to it. What is not in the table is refused.
//! Knows nothing of what a route does.

use std::time::Duration;

use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::Engine as _;
use hyper::{
    HeaderMap, Method, StatusCode,
    header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE},
    http::request::Parts,
};

use super::{App, input, problem::Problem};
use swell_model::principal::{Principal, Role, is_user};
use swell_repositories::HostedRepositories;

/// Names the person within the token's role. For attribution alone: whoever has the token may write any name.
pub const USER_HEADER: &str = "x-swell-user";

/// What a request must prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: it tells no more than that a server is here.
    Nothing,
    /// A token that allows one of these.
    OneOf(&'static [Role]),
    /// Git: reading takes a viewer, pushing a developer; the token is the password.
    Git,
}

/// What holds for a route.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Its method.
    pub method: &'static str,
    /// Its path, as the router matches it.
    pub path: &'static str,
    /// Who may.
    pub needs: Needs,
    /// Whether it may take longer than a request's time until it answers, because it receives a stream. It has its own limits.
    pub streams: bool,
}

const READ: Needs = Needs::OneOf(&[Role::Viewer]);
const WORK: Needs = Needs::OneOf(&[Role::Developer]);
const ADMIN: Needs = Needs::OneOf(&[Role::Admin]);
const CONTENT: Needs = Needs::OneOf(&[Role::Viewer, Role::Agent, Role::Runner]);

const fn rule(method: &'static str, path: &'static str, needs: Needs) -> Rule {
    Rule { method, path, needs, streams: false }
}

const fn stream(method: &'static str, path: &'static str, needs: Needs) -> Rule {
    Rule { method, path, needs, streams: true }
}

/// Every route. Viewers read; developers register pipelines, push, build, deploy and roll back; what concerns everyone
/// (environments and their policy, targets, forgetting a pipeline) takes an admin. Machines have what they need and nothing else.
pub const RULES: &[Rule] = &[
    rule("GET", "/livez", Needs::Nothing),
    rule("GET", "/readyz", Needs::Nothing),
    rule("GET", "/openapi.json", Needs::Nothing),
    rule("GET", "/metrics", READ),
    rule("GET", "/v1/whoami", Needs::OneOf(&Role::WITH_TOKEN)),
    rule("GET", "/v1/cluster", READ),
    rule("GET", "/v1/events", READ),
    rule("GET", "/v1/why/{id}", READ),
    rule("GET", "/v1/repositories", READ),
    rule("POST", "/v1/repositories", WORK),
    rule("GET", "/v1/repositories/{name}", READ),
    rule("GET", "/v1/pipelines", READ),
    rule("POST", "/v1/pipelines", WORK),
    rule("GET", "/v1/pipelines/{name}", READ),
    rule("DELETE", "/v1/pipelines/{name}", ADMIN),
    stream("POST", "/v1/pipelines/{name}/artifacts", WORK),
    rule("GET", "/v1/builds", READ),
    rule("POST", "/v1/builds", WORK),
    rule("GET", "/v1/builds/{id}", READ),
    rule("POST", "/v1/builds/{id}/cancel", WORK),
    rule("POST", "/v1/builds/{id}/retry", WORK),
    rule("GET", "/v1/builds/{id}/log", READ),
    rule("GET", "/v1/artifacts", READ),
    rule("GET", "/v1/artifacts/{digest}", READ),
    rule("GET", "/v1/artifacts/{digest}/content", CONTENT),
    rule("GET", "/v1/artifacts/{digest}/manifest", CONTENT),
    rule("POST", "/v1/blobs", Needs::OneOf(&[Role::Agent, Role::Runner])),
    rule("GET", "/v1/blobs/{digest}", READ),
    rule("GET", "/v1/releases", READ),
    rule("GET", "/v1/releases/{id}", READ),
    rule("GET", "/v1/environments", READ),
    rule("POST", "/v1/environments", ADMIN),
    rule("GET", "/v1/environments/{name}", READ),
    rule("GET", "/v1/environments/{name}/deployments", READ),
    rule("POST", "/v1/environments/{name}/freeze", ADMIN),
    rule("POST", "/v1/environments/{name}/unfreeze", ADMIN),
    rule("POST", "/v1/environments/{name}/quarantine/{release}/clear", ADMIN),
    rule("GET", "/v1/targets", READ),
    rule("GET", "/v1/targets/{name}", READ),
    rule("POST", "/v1/targets/{name}/cordon", ADMIN),
    rule("POST", "/v1/targets/{name}/uncordon", ADMIN),
    rule("GET", "/v1/runners", READ),
    rule("GET", "/v1/rollouts", READ),
    rule("POST", "/v1/rollouts", WORK),
    rule("GET", "/v1/rollouts/{id}", READ),
    rule("POST", "/v1/rollouts/{id}/pause", WORK),
    rule("POST", "/v1/rollouts/{id}/resume", WORK),
    rule("POST", "/v1/rollouts/{id}/abort", WORK),
    rule("POST", "/v1/rollouts/{id}/promote", WORK),
    rule("POST", "/v1/rollbacks", WORK),
    // A dry run: it changes nothing, so whoever may look may ask.
    rule("POST", "/v1/plans", READ),
    stream("GET", "/v1/agents/session", Needs::OneOf(&[Role::Agent])),
    stream("GET", "/v1/gateways/session", Needs::OneOf(&[Role::Gateway])),
    stream("GET", "/git/{repository}/{*rest}", Needs::Git),
    stream("POST", "/git/{repository}/{*rest}", Needs::Git),
];

/// Who sent a request, as its token proves. Only behind [`guard`].
#[derive(Debug, Clone)]
pub struct Caller(pub Principal);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Caller>().cloned().ok_or_else(|| unauthorized("this takes a token"))
    }
}

/// Lets a request through to its route when the table says so, and ends it when its answer takes too long to begin.
pub async fn guard(State(app): State<App>, matched: MatchedPath, mut request: Request, next: Next) -> Response {
    let method = if request.method() == Method::HEAD { "GET" } else { request.method().as_str() };
    let found = RULES.iter().find(|rule| rule.path == matched.as_str() && rule.method == method);
    let Some(rule) = found else {
        return Problem::new(StatusCode::FORBIDDEN, "forbidden", "nobody may do this", "see `/openapi.json`").into_response();
    };
    match allow(&app, rule, request.method().clone(), &request) {
        Ok(None) => {}
        Ok(Some(principal)) => {
            tracing::Span::current().record("principal", tracing::field::display(&principal));
            request.extensions_mut().insert(Caller(principal));
        }
        Err(problem) => return challenge(rule, problem),
    }
    if rule.streams {
        return next.run(request).await;
    }
    let answer = async {
        match input::received(request).await {
            Ok(request) => next.run(request).await,
            Err(problem) => problem.into_response(),
        }
    };
    within(app.options.request_timeout, answer).await
}

async fn within(limit: Duration, answer: impl Future<Output = Response>) -> Response {
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
        let detail = format!("no answer within {} s", limit.as_secs());
        let hint = "look whether it happened, or send it again with the same `Idempotency-Key`";
        Problem::new(StatusCode::GATEWAY_TIMEOUT, "timed_out", detail, hint).retryable().into_response()
    })
}

fn allow(app: &App, rule: &Rule, method: Method, request: &Request) -> Result<Option<Principal>, Problem> {
    let needed: &[Role] = match rule.needs {
        Needs::Nothing => return Ok(None),
        Needs::OneOf(roles) => roles,
        Needs::Git => {
            let path = request.uri().path();
            // Judged as it is written and answered as it is decoded: only what reads the same both ways is let through.
            if path.contains('%') {
                let detail = "a path below `/git/` is written without `%`";
                return Err(Problem::invalid(detail, "names of repositories need no escapes: write them as they are"));
            }
            let sub_path = path.splitn(4, '/').nth(3).unwrap_or_default();
            if HostedRepositories::is_push(sub_path, request.uri().query()) { &[Role::Developer] } else { &[Role::Viewer] }
        }
    };
    let (token, login) = credentials(request.headers(), rule.needs == Needs::Git)
        .ok_or_else(|| unauthorized("this takes a token: `Authorization: Bearer TOKEN`"))?;
    let role = app.tokens.verify(&token).ok_or_else(|| unauthorized("the token is not one of this cluster's"))?;
    if !needed.iter().any(|needed| role.allows(*needed)) {
        let names: Vec<_> = needed.iter().map(|role| role.name()).collect();
        let path = request.uri().path();
        let detail = format!("{role} may not {method} {path}: it takes {}", names.join(" or "));
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            detail,
            "use a token of that role, or ask someone who has one",
        ));
    }
    Ok(Some(Principal::new(role, user(request.headers(), login, role)?)))
}

/// The token, and the login name beside it where git sent one.
fn credentials(headers: &HeaderMap, basic_too: bool) -> Option<(String, Option<String>)> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some((rest.trim().to_owned(), None));
    }
    if !(basic_too && scheme.eq_ignore_ascii_case("basic")) {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok()?;
    let (login, password) = String::from_utf8(decoded).ok()?.split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned()))?;
    // Git asks for a name before it asks for a password; people paste the token into either.
    if password.is_empty() { Some((login, None)) } else { Some((password, Some(login))) }
}

/// The name within the role: the header's, else git's login where it can be one, else the role's own.
fn user(headers: &HeaderMap, login: Option<String>, role: Role) -> Result<String, Problem> {
    if let Some(value) = headers.get(USER_HEADER) {
        let name = value.to_str().unwrap_or_default();
        let hint = "write up to 64 of `A-Z a-z 0-9 . _ @ + -`";
        return if is_user(name) { Ok(name.to_owned()) } else { Err(Problem::invalid("`X-Swell-User` is not a name", hint)) };
    }
    Ok(login.filter(|login| is_user(login)).unwrap_or_else(|| role.name().to_owned()))
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail, "set `SWELL_TOKEN`, or run `swell login`")
}

fn challenge(rule: &Rule, problem: Problem) -> Response {
    let scheme = match rule.needs {
        Needs::Git => "Basic realm=\"groundswell: the password is your token\"",
        _ => "Bearer realm=\"groundswell\"",
    };
    let unauthorized = problem.status == StatusCode::UNAUTHORIZED.as_u16();
    let mut response = problem.into_response();
    if unauthorized {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
    }
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_one_rule() {
        let mut seen = std::collections::BTreeSet::new();
        assert!(RULES.iter().all(|rule| seen.insert((rule.method, rule.path))));
    }
}
